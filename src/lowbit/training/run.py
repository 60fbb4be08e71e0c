"""A run: what its config asks for, each part built once and shared by the checks and the training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from filelock import FileLock, Timeout
from torch import nn

from lowbit.config import identity
from lowbit.config.image_files import IMAGE_FILES
from lowbit.config.problems import ConfigError
from lowbit.data import StepDataModule, data_info
from lowbit.files import remove_leftovers
from lowbit.recipes import Recipe, build_recipe
from lowbit.results.run_file import HOLDER_FILE, LOCK_FILE, read_holder, write_holder
from lowbit.settings.data import DataInfo
from lowbit.settings.run import Config
from lowbit.training.setup import make_datamodule, make_model, make_teacher_datamodule, make_teacher_model

_LOCK_SECONDS = 0.5  # who only looks at the state of a run holds its lock for less


class HeldError(Exception):
    """Another process is running the run."""


class Run:
    """One run.

    Args:
        cfg: the config as composed, or resolved.
        config: the same as typed object.
    """

    def __init__(self, cfg: identity.Composed, config: Config) -> None:
        self.cfg = cfg
        self.config = config
        self.outputs = Path(config.paths.outputs)
        self._models: dict[str, nn.Module] = {}

    @cached_property
    def id(self) -> str:
        """The hash of what the run computes."""
        return identity.run_id(self.cfg)

    @cached_property
    def folder(self) -> Path:
        """Where the run keeps its files."""
        return self.outputs / "runs" / self.config.name / self.id

    @cached_property
    def teacher_id(self) -> str:
        """The id of the teacher that the run needs."""
        return identity.teacher_id(self.cfg)

    @cached_property
    def data(self) -> StepDataModule:
        """The data module of the students."""
        return make_datamodule(self.config, self.config.seed)

    @cached_property
    def teacher_data(self) -> StepDataModule:
        """The data module of the teacher."""
        return make_teacher_datamodule(self.config)

    @cached_property
    def recipe(self) -> Recipe:
        """The stages."""
        return build_recipe(self.config, self.data.steps_per_epoch)

    def check_models(self, *, teacher: bool, student: bool) -> None:
        """Build the models that begin with weights, and keep them for `new_teacher` and `new_student`.

        Raises:
            ConfigError: what is wrong with their files.
        """
        if teacher:
            self._models["teacher"] = self.new_teacher()
        if student:
            self._models["student"] = self.new_student()

    def new_teacher(self) -> nn.Module:
        """Return the teacher's model before its training: the one that the check has built, the first time."""
        kept = self._models.pop("teacher", None)
        return make_teacher_model(self.config, self._info("teacher_data")) if kept is None else kept

    def new_student(self) -> nn.Module:
        """Return the model of a fresh student: the one that the check has built, the first time."""
        kept = self._models.pop("student", None)
        return make_model(self.config, self._info("data"), self.config.seed) if kept is None else kept

    def _info(self, part: str) -> DataInfo:
        """Describe the data without reading texts; image files need the pixels that the models want."""
        data: StepDataModule | None = getattr(self, part) if self.config.data.kind in IMAGE_FILES else None
        return data_info(self.config.data) if data is None else data.info

    @contextmanager
    def claim(self) -> Iterator[None]:
        """Hold the run's folder for the block; a run that is refused in it leaves no folder.

        Raises:
            HeldError: another process holds it.
            OSError: the folder is another user's.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / LOCK_FILE)
        try:
            lock.acquire(timeout=_LOCK_SECONDS)
        except Timeout:
            raise HeldError(str(read_holder(self.folder) or "another process")) from None
        except PermissionError as error:
            raise OSError(
                f"{self.folder} belongs to another user, who has not finished this run; set paths.outputs to a folder "
                "of yours"
            ) from error
        try:
            yield
        except ConfigError:
            self._leave_nothing()
            raise
        finally:
            lock.release()

    def begin(self) -> None:
        """Record this process as the holder, and remove what interrupted writers have left."""
        write_holder(self.folder)
        for folder in (self.folder, self.outputs / "cache"):
            remove_leftovers(folder)

    def _leave_nothing(self) -> None:
        """Remove the folder of a run that was refused before it had a result, and folders that held nothing else."""
        folder = self.folder
        if {file.name for file in folder.iterdir()} <= {LOCK_FILE, HOLDER_FILE}:
            for file in folder.iterdir():
                file.unlink()
            while folder != self.outputs and not any(folder.iterdir()):
                folder.rmdir()
                folder = folder.parent
