"""Training: the LightningModules, optimizers, the stage runner, the teacher cache."""
