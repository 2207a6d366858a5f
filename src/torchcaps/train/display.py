"""What a run shows while it runs: a progress bar on a terminal, one line per epoch elsewhere."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from torchcaps.terminal import printable


class Display:
    """Standard error's view of a run of `epochs * epoch_steps` steps; silent where not `enabled`."""

    def __init__(self, epochs: int, epoch_steps: int, enabled: bool = True):
        self.epochs, self.enabled = epochs, enabled
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]} images/s  loss {task.fields[loss]}  accuracy {task.fields[accuracy]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not (enabled and self.console.is_terminal),
        )
        self.task = self.bar.add_task("", total=epochs * epoch_steps, epoch="", rate="", loss="", accuracy="")
        self._loss = self._accuracy = 0.0
        self._seen = 0

    def __enter__(self) -> Display:
        self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.bar.stop()

    def say(self, text: str) -> None:
        """Print a line about the run."""
        if self.enabled:
            self.console.print(Text(printable(text)))  # a string would be read as markup

    def start_epoch(self, epoch: int) -> None:
        """Begin the epoch that has `epoch` before it."""
        self._loss = self._accuracy = 0.0
        self._seen = 0
        self.bar.update(self.task, epoch=f"{epoch + 1}/{self.epochs}")

    def step(self, step: int, loss: float, accuracy: float, rate: float) -> None:
        """Show that `step` steps of the run are done; the means shown are over this epoch's steps in this process."""
        self._seen += 1
        self._loss += loss
        self._accuracy += accuracy
        self.bar.update(
            self.task,
            completed=step,
            rate=f"{rate:.0f}",
            loss=f"{self._loss / self._seen:.4f}",
            accuracy=f"{self._accuracy / self._seen:.2%}",
        )

    def end_epoch(self, record: dict) -> None:
        """Print the line of `metrics.jsonl` for people."""
        if not self.enabled:
            return
        parts = [f"epoch {record['epoch']}/{self.epochs}"]
        of_which = f", of which penalty {record['train_penalty']:.4f}" if "train_penalty" in record else ""
        parts.append(f"train: loss {record['train_loss']:.4f}{of_which}, accuracy {record['train_accuracy']:.2%}")
        if "penalties" in record:
            terms = ", ".join(f"{name} {value:.4f}" for name, value in record["penalties"].items())
            parts.append(f"penalties: {terms}")
        if record["validation_accuracy"] is not None:
            loss = record["validation_loss"]
            said = "not finite" if loss is None else f"{loss:.4f}"
            parts.append(f"validation: loss {said}, accuracy {record['validation_accuracy']:.2%}")
        parts.append(f"{record['images_per_second']:.0f} images/s")
        self.say("  ".join(parts))
