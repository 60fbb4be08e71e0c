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
    A batch of training of which none can be read gets the next image that can; one of an evaluation is empty.
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
        tried = ((row, self._readable(row, step)) for row in rows.tolist())
        read = [(row, pixels) for row, pixels in tried if pixels is not None]
        if not read and step is not None:
            read = [self._next_readable(int(rows[-1]), step)]
        if not read:
            return {"pixel_values": torch.empty(0), "labels": self.labels[:0]}
        labels = self.labels[[row for row, _ in read]]
        return {"pixel_values": torch.stack([pixels for _, pixels in read]), "labels": labels}

    def _readable(self, row: int, step: int | None) -> Tensor | None:
        """Return the input of a row, None with a warning if its image cannot be read and may be left out."""
        try:
            return self._input(row, step)
        except UnreadableImageError as error:
            if not self.skip:
                raise
            warnings.warn(f"left out of its batch: {error}", stacklevel=2)
        return None

    def _next_readable(self, last: int, step: int) -> tuple[int, Tensor]:
        for distance in range(1, len(self)):
            row = (last + distance) % len(self)
            pixels = self._readable(row, step)
            if pixels is not None:
                return row, pixels
        raise ValueError("none of the training images can be read; see the warnings above")

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
