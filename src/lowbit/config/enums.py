"""The words that a user chooses from, in YAML and on the command line: the names of the members."""

from enum import Enum, auto


class DataKind(Enum):
    """Where the examples come from."""

    digits = auto()
    agreement = auto()
    glue = auto()
    squad = auto()
    xglue = auto()
    image_folder = auto()
    cifar10 = auto()
    cifar100 = auto()


class Interpolation(Enum):
    """How images are resized."""

    bilinear = auto()
    bicubic = auto()


class GlueTask(Enum):
    """A task of the GLUE benchmark; `config.glue_tasks` describes each."""

    cola = auto()
    sst2 = auto()
    mrpc = auto()
    stsb = auto()
    qqp = auto()
    mnli = auto()
    qnli = auto()
    rte = auto()
    wnli = auto()


class SquadVersion(Enum):
    """A version of SQuAD; in 2.0 a text may not hold the answer. `config.squad_files` describes each."""

    v1_1 = auto()
    v2_0 = auto()


class XglueTask(Enum):
    """An understanding task of the XGLUE benchmark; `config.xglue_tasks` describes each."""

    xnli = auto()
    pawsx = auto()
    nc = auto()
    qadsm = auto()
    wpr = auto()
    qam = auto()
    ner = auto()
    pos = auto()


class DataSource(Enum):
    """Where the rows of a published data set are read: files below `data.dir`, or the Hugging Face hub."""

    folder = auto()
    hub = auto()


class OnBadRow(Enum):
    """What a row that cannot be used does: stop before anything is trained, or be left out and counted."""

    error = auto()
    skip = auto()


class TokenizerKind(Enum):
    """Who turns text into token ids: the data set's own word list, or the model's tokenizer."""

    words = auto()
    model = auto()


class Padding(Enum):
    """To which length the sentences of a batch are padded."""

    longest = auto()
    max_length = auto()


class ModelKind(Enum):
    """How a model is built: three random-init architectures, a Hugging Face folder or hub name, a timm name."""

    bert = auto()
    vit = auto()
    timm_vit = auto()
    hf = auto()
    timm = auto()


class TeacherSource(Enum):
    """Where the teacher's weights come from."""

    finetune = auto()
    path = auto()
    hub = auto()


class QuantizerKind(Enum):
    """A fake quantizer of `lowbit.quantizers`; `config.kinds` says what each takes."""

    none = auto()
    twn = auto()
    lat = auto()
    bwn = auto()
    statsq = auto()
    bitnet = auto()
    minmax_symmetric = auto()
    minmax_asymmetric = auto()
    xtc = auto()
    lsq = auto()
    seq = auto()
    elastic = auto()
    pact = auto()
    static = auto()
    block_noise = auto()
    ipq = auto()


class GradScale(Enum):
    """Factor on the gradient of LSQ's step size: 1/sqrt(N Qp), 1/sqrt(Qp sum|x|), 1/(sqrt(N) Qp), 1."""

    lsq = auto()
    l1 = auto()
    vvtq_act = auto()
    none = auto()


class ScaleInit(Enum):
    """Initial step size: by mean magnitude, maximum, three sigma, least squares, or the paper's own rule (elastic).

    `mean_signed` divides by the signed grid's sqrt(Qp) for unsigned grids too, as the variation-aware code does.
    """

    mean = auto()
    mean_signed = auto()
    max = auto()
    three_sigma = auto()
    mse = auto()
    paper = auto()


class LatVariant(Enum):
    """Loss-aware ternarization by alternation or by exact search."""

    approximate = auto()
    exact = auto()


class NoiseUnit(Enum):
    """What quantization noise draws at random: single weights, or rows."""

    element = auto()
    row = auto()


class EstimatorKind(Enum):
    """Gradient estimator of `lowbit.quantizers.estimators`; `published` is each quantizer's own."""

    published = auto()
    ste = auto()
    clipped_ste = auto()
    value_clipped_ste = auto()
    ewgs = auto()
    stable_qat = auto()


class CorrectionKind(Enum):
    """A pull of the latent weights towards their grid, around the optimizer step."""

    none = auto()
    cage = auto()
    dampening = auto()


class CorrectionSchedule(Enum):
    """CAGE's strength after its silence: a linear ramp, or all at once."""

    linear_ramp = auto()
    constant = auto()


class Aggregation(Enum):
    """How dampening sums the squared distances of a weight; `kernel_mean` averages over the kernel of a convolution."""

    sum = auto()
    mean = auto()
    kernel_mean = auto()


class Granularity(Enum):
    """Which elements share one scale."""

    tensor = auto()
    row = auto()
    token = auto()
    head = auto()


class OptimizerKind(Enum):
    """An optimizer of `lowbit.training.optimizers`."""

    adamw = auto()
    bert_adam = auto()


class ScaleUpdate(Enum):
    """How learned scales are updated: by the optimizer of the weights, or by plain gradient descent."""

    same = auto()
    sgd = auto()


class StepCounter(Enum):
    """Which step count BertAdam's schedule reads: each parameter's own (published) or the stage's."""

    parameter = auto()
    shared = auto()


class SchedulerKind(Enum):
    """Shape of the learning rate after the warm-up."""

    linear = auto()
    cosine = auto()
    constant = auto()


class LossKind(Enum):
    """What student and teacher are compared on."""

    logits = auto()
    hidden = auto()
    scores = auto()
    maps = auto()
    maps_mse = auto()
    attn_block = auto()
    attn_out = auto()
    task = auto()
    soft_labels = auto()
    obr = auto()


class LayerReduction(Enum):
    """Whether a term is the sum or the mean of its layers."""

    sum = auto()
    mean = auto()


class ObrAggregation(Enum):
    """How OBR sums the squared distances of a weight: mean (published code), sum, or norm."""

    mean = auto()
    sum = auto()
    norm = auto()


class Reduction(Enum):
    """Soft cross-entropy over the classes: TI sums, TernaryBERT takes the mean. The batch is always averaged."""

    sum = auto()
    mean = auto()


class MaskRule(Enum):
    """`full`: padded entries count as zero, mean over all (published). `valid`: mean over unpadded entries."""

    full = auto()
    valid = auto()


class Ramp(Enum):
    """How a loss weight moves from `weight` to `weight_end` over a stage."""

    constant = auto()
    linear = auto()
    cosine = auto()


class Site(Enum):
    """A tensor inside a layer that the teacher's may replace."""

    probs = auto()
    context = auto()
    attn_out = auto()
    ffn_out = auto()
    hidden = auto()


class PhaseOrder(Enum):
    """How the phases of an intervention follow each other."""

    sequential = auto()
    random = auto()


class StudentInit(Enum):
    """Where a stage's student comes from.

    `narrow`: the teacher with a share of its heads and FFN neurons; `split`: the previous, ternary student, each weight
    split into two binary ones.
    """

    teacher = auto()
    previous = auto()
    fresh = auto()
    narrow = auto()
    split = auto()


class Activation(Enum):
    """Activation function of the feed-forward layers."""

    gelu = auto()
    relu = auto()


class LoggerMode(Enum):
    """W&B: `auto` is what WANDB_MODE says, else online with WANDB_API_KEY or under `wandb agent`, else offline."""

    auto = "auto"
    online = "online"
    offline = "offline"
    disabled = "disabled"


class Precision(Enum):
    """Lightning precision; names without the dash, which Python does not allow."""

    float32 = "32-true"
    float64 = "64-true"
    bf16_mixed = "bf16-mixed"
    fp16_mixed = "16-mixed"
