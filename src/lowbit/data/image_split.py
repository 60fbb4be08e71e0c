"""A split whose images are decoded and transformed when a batch is built."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from lowbit.data.image_source import ImageSource, UnreadableImageError
from lowbit.data.image_transforms import Transform, seeded
from lowbit.data.sampling import Stream
from lowbit.data.shares import Share
from lowbit.data.splits import Batch, Split


class DecodedSplit(Split):
    """Images from files and their labels.

    The augmentation of an image depends on (seed, step, row), so that batches are the same whatever the number of
    workers, and after a resume. Images that cannot be read stop the run, or are left out of their batch with a warning.
    """

    slow = True

    def __init__(
        self,
        images: ImageSource,
        labels: Tensor,
        transform: Transform,
        augment: Transform | None = None,
        seed: int = 0,
        *,
        skip: bool = False,
    ) -> None:
        """Keep the settings; `transform` is for whole images, `augment` for rows that come with a training step."""
        super().__init__(labels)
        self.images, self.seed, self.skip = images, seed, skip
        self._transform, self._augment = transform, augment

    def _batch(self, rows: Tensor, step: int | None) -> Batch:
        pixels, kept = [], []
        for row in rows.tolist():
            try:
                pixels.append(self._input(row, step))
            except UnreadableImageError as error:
                if not self.skip:
                    raise
                warnings.warn(f"left out of its batch: {error}", stacklevel=2)
            else:
                kept.append(row)
        if not pixels:
            raise ValueError(f"none of the {len(rows)} images of a batch can be read; see the warnings above")
        return {"pixel_values": torch.stack(pixels), "labels": self.labels[kept]}

    def _share(self, rows: Tensor, step: int, share: Share) -> Batch:
        """Decode the images of the share alone."""
        own = rows[share.rows(len(rows))]
        return share.weighted(self._batch(own, step), len(own), len(rows), len(rows))

    def _input(self, row: int, step: int | None) -> Tensor:
        image = self.images.pil(row)
        if step is None or self._augment is None:
            return self._transform(image)
        with seeded(self.seed, Stream.augment, step, row):
            return self._augment(image)
