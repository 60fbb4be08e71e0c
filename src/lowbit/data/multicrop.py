"""The training split of multi-crop distillation: several stored crops of each image per step."""

import math

import torch
from torch import Tensor

from lowbit.data.crops import CHOSEN, Crops, CropTransform
from lowbit.data.label_manifest import Images
from lowbit.data.sampling import generator_for
from lowbit.data.shares import Share
from lowbit.data.soft_labels import SoftLabelStore
from lowbit.data.splits import Batch, Split


class MultiCropSplit(Split):
    """Several stored crops of each image per step, and the teacher's probabilities for them as `soft_labels`.

    A batch of ceil(b / m) images becomes b crops: m of each image, of the last one what is left. Which crops is a pure
    function of (seed, step). The last batch of an epoch may have fewer images and then fewer crops. Rows without a step
    are whole images without soft labels.

    Source: `ImageFolder_FKD` of FKD (arXiv 2112.01528), published code.
    """

    def __init__(
        self,
        images: Images,
        labels: Tensor | None,
        store: SoftLabelStore,
        *,
        batch_size: int,
        num_crops: int,
        seed: int,
        transform: CropTransform | None = None,
    ) -> None:
        """Keep the settings; `transform` defaults to the teacher's, which gives the very pixels that it saw.

        Raises:
            ValueError: more crops per image than stored, or than a batch holds.
        """
        if not 1 <= num_crops <= min(store.num_crops, batch_size):
            raise ValueError(
                f"num_crops={num_crops}: {store.folder} holds {store.num_crops} crops per image and a batch "
                f"{batch_size}; choose 1..{min(store.num_crops, batch_size)}"
            )
        rows = store.indices
        super().__init__(torch.full((len(rows),), -1) if labels is None else labels[rows])
        self.images, self.store, self.transform = images, store, transform or store.transform
        self.slow = not isinstance(images, Tensor)
        self.batch_size, self.num_crops, self.seed, self.known = batch_size, num_crops, seed, labels is not None

    @property
    def images_per_batch(self) -> int:
        """The batch size to give the sampler."""
        return math.ceil(self.batch_size / self.num_crops)

    def _share(self, rows: Tensor, step: int, share: Share) -> Batch:
        """Decode the images of the share alone; their crops are those that the whole batch has."""
        part = share.rows(len(rows))
        own = self._build(rows, step, range(*part.indices(len(rows))))
        crops = sum(self._crops_at(place) for place in range(len(rows)))
        return share.weighted(own, len(own["pixel_values"]), crops, len(rows))

    def _crops_at(self, place: int) -> int:
        return min(self.num_crops, self.batch_size - place * self.num_crops)

    def _batch(self, rows: Tensor, step: int | None) -> Batch:
        return self._build(rows, step, range(len(rows)))

    def _build(self, rows: Tensor, step: int | None, wanted: range) -> Batch:
        """Build the batch of the rows at the places `wanted`; crops are drawn for all of them."""
        if step is not None and len(rows) > self.images_per_batch:
            raise ValueError(
                f"{len(rows)} images for {self.batch_size} crops: sample {self.images_per_batch} images per step"
            )
        whole = Crops(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([False]))
        generator = None if step is None else generator_for(self.seed, CHOSEN, step)
        pixels, answers, counts = [], [], []
        for place, row in enumerate(rows.tolist()):
            index, count = int(self.store.indices[row]), 1
            if generator is not None:
                count = self._crops_at(place)
                chosen = torch.randperm(self.store.num_crops, generator=generator)[:count]
            if place not in wanted:
                continue
            image, (coords, flip) = self.images[index], whole
            if generator is not None:
                coords, flip, probs = self.store.crops(index, chosen, image)
                answers.append(probs)
            pixels += [self.transform(image, *pair) for pair in zip(coords, flip.tolist(), strict=True)]
            counts.append(count)
        batch = {"pixel_values": torch.stack(pixels)}
        if self.known:
            batch["labels"] = self.labels[rows[wanted.start : wanted.stop]].repeat_interleave(torch.tensor(counts))
        if answers:
            batch["soft_labels"] = torch.cat(answers)
        return batch
