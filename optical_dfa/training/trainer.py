"""The training program: one configuration in, one run folder and its summary out."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

from noise_models.errors import UsageError
from noise_models.places import moved, seconds, usable
from noise_models.randomness.generator import NoiseGenerator, derive_seed
from optical_dfa.aligning import align
from optical_dfa.config import ResolvedConfig, TrainConfig, resolve
from optical_dfa.data import load as load_data
from optical_dfa.data.dataset import Dataset
from optical_dfa.data.features import with_features
from optical_dfa.feedback import make_rule
from optical_dfa.feedback.aligned import AlignedModule
from optical_dfa.feedback.rule import Requires, Rule
from optical_dfa.networks import building as models
from optical_dfa.progress import Progress, SilentProgress
from optical_dfa.runs.folder import (
    CALIBRATION,
    CAMERA,
    CERTIFICATE,
    CHECKPOINT,
    LEDGER,
    LOCAL,
    RESUMED_ANEW,
    SUMMARY,
    RunFolder,
)
from optical_dfa.training.diagnosis import Diagnosis
from optical_dfa.training.ending import EndedError, Ending, Interval
from optical_dfa.training.evaluation import accuracy_and_loss, area_under_curve
from optical_dfa.training.layers import LayerParallel
from optical_dfa.training.loss import cross_entropy, private_loss, refuse_by_number
from optical_dfa.training.transfer import take_convolutions
from privacy import checkpoint
from privacy.auditing.beyond import refuse_beyond
from privacy.engine import PrivacyEngine
from privacy.errors import WorkerLostError
from privacy.guarantee import Guarantee, Kind
from privacy.health_log import noting_failures
from privacy.ledger import SETTINGS, Ledger
from privacy.notions import Adjacency
from privacy.releases import calibrations, terms
from privacy.releases.dark_source import DarkFrameSource
from privacy.releases.per_record import PerRecordRelease
from privacy.sampling import steps_an_epoch
from privacy.weights import ANNOUNCED
from privacy.workers import Workers

_CODES = 256  # exit codes of a program are below
# What one training step offers a rule; a rule that requires more is refused.
OFFERS = frozenset({Requires.ROOT_ERROR, Requires.BACKWARD, Requires.FORWARD_MODE, Requires.SECOND_FORWARD})


def train(
    config: TrainConfig,
    out: Path | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    checkpoint_every: Interval | None = None,
    max_minutes: float | None = None,
) -> dict[str, Any]:
    """Train a network and say what its guarantee is.

    Of several workers (`privacy.workers`) the first reads and writes the folder and evaluates, with the others where
    each has layers of its own (`LayerParallel`); `config` is the same on all.

    Args:
        config: what to train; missing values take the shipped defaults of the data set.
        out: run folder; None keeps nothing.
        resume: go on with the run in `out`, to the same budget.
        overwrite: replace the run in `out`.
        progress: told of every step.
        checkpoint_every: a checkpoint is written as often too, besides those of whole epochs.
        max_minutes: the run ends after these, between two steps, its checkpoint kept.
    Returns:
        the summary (JSON types), as written to `summary.json`.
    Raises:
        UsageError: a configuration that cannot be run, before anything is written.
        DeviceError: the device is absent or unhealthy.
        EndedError: a KeyboardInterrupt; by a signal (interrupt, SIGTERM, SIGUSR1) or after its minutes; a checkpoint of
            the last whole step was kept.
    """
    started = time.perf_counter()
    ending = Ending(checkpoint_every, max_minutes)
    workers = Workers.here()
    folder = None if out is None or not workers.first else RunFolder(out)
    with nullcontext() if folder is None else closing(folder):
        if folder is not None and resume:
            folder.take()  # before anything of the run is read
        run = _Run(config, folder, resume=resume, overwrite=overwrite, workers=workers)
        before = run.position.seconds  # of the parts before, as far as the checkpoint goes
        try:
            run.train(progress or SilentProgress(), ending)
            area = run.area()
            return workers.told(lambda: run.summarise(before + time.perf_counter() - started, area))
        finally:
            run.close()


class _Run:
    """One run: data, aligned network, optimizer, and in a private run the engine."""

    def __init__(
        self,
        config: TrainConfig,
        folder: RunFolder | None,
        *,
        resume: bool,
        overwrite: bool,
        workers: Workers,
    ) -> None:
        self.workers = workers
        own_layers = config.parallel == "layers" and workers.count > 1
        if not own_layers:
            _refuse_workers(config, workers)
        self.place = usable(config.device)
        loaded: list[Dataset] = []
        workers.told(lambda: loaded.append(_data(config)))  # downloaded once
        self.data: Dataset = loaded[0] if loaded else _data(config)
        self.config: ResolvedConfig = resolve(
            config,
            len(self.data.x_train),
            models.usual(text=self.data.text, cardinalities=self.data.cardinalities),
        )
        if self.config.features is not None:
            self.data = self._with_features(self.config.features)
        self.folder = folder
        if self.folder is not None and not resume and not overwrite:
            self.folder.refuse_run()
        self.overwrite = overwrite
        if self.folder is not None and resume:
            self.folder.refuse_other(self.config)
        path = self.config.calibration
        self.calibration = None if path is None else calibrations(self.config.release).load(path)
        seed = self.config.seed
        self._refuse_labels_that_are_inputs()
        network = models.build(
            self.config.model,
            self.data.input_shape,
            self.data.classes,
            seed,
            cardinalities=self.data.cardinalities,
            text=self.data.text,
        ).to(self.place)
        if self.config.transfer is not None:
            take_convolutions(network, self.config.transfer)
        secret = self.config.private and not self.config.reproducible
        self.resumed = self._ledger_before(resume)
        self._goes_on = workers.told(lambda: self.resumed is not None)
        own = "device" if own_layers else workers.name("device")  # each a part of one device, or its own
        self.noise = (
            NoiseGenerator.secure(own)
            if secret
            else NoiseGenerator.seeded(seed, f"{own} from release {workers.told(self._count_before)}")
        )
        rule = make_rule(self.config.rule, self.config.rule_options)
        self.module: AlignedModule = align(
            network,
            rule=rule,
            backend=self.config.backend,
            example=self.data.x_train[:1],
            points=_points(network, rule, self.config.points),
            seed=seed,
            backend_options=self.config.backend_options,
            # A mean is undone up to its rounding, which depends on the number of records.
            loss_reduction="sum" if self.config.private else "mean",
            noise=self.noise,
            show=None,
        )
        unmet = self.module.rule.requires - OFFERS
        if unmet:
            raise UsageError(
                f"rule {self.config.rule} needs {', '.join(unmet)}, which this trainer does not give"
            )
        self.optimizer: Optimizer = _optimizer(self.config, self.module)
        self.layers = (
            LayerParallel(self.module, self.optimizer, cross_entropy, parts=self.config.micro_batches)
            if own_layers
            else None
        )
        self._has_folder = workers.told(lambda: folder is not None)
        # Records stay where they lie, which may be on disk, and batches go to the place.
        self.x, self.y = self.data.x_train, self.data.y_train
        self.x_test, self.y_test = self.data.x_test, self.data.y_test
        self.diagnosis = (
            Diagnosis(self.module, self.x, self.y, None if folder is None else folder.path)
            if self.config.diagnose
            else None
        )
        self.engine: PrivacyEngine | None = None
        self.ledger: Ledger | None = None
        self.position = checkpoint.Position(0, 0, "", 0.0)
        self.accuracy = self.test_loss = math.nan
        # What training itself computes from records is shown of unprivate runs, or where the user insists.
        self._diagnoses = not self.config.private or self.config.unsafe_diagnostics
        self._losses: list[Tensor] = []
        self._records: list[int] = []
        try:
            self._open(workers.told(lambda: resume and folder is not None))
        except BaseException:
            self.close()
            raise

    # ---- putting it together

    def _with_features(self, spec: str) -> Dataset:
        """The data set's features; what is kept of them is computed by the first worker."""
        found: list[Dataset] = []
        self.workers.told(lambda: found.append(with_features(self.data, spec, progress=True)))
        return found[0] if found else with_features(self.data, spec)

    def _refuse_labels_that_are_inputs(self) -> None:
        release = self.config.release
        if self.data.text and release != "none" and terms(release).adjacency is Adjacency.LABEL:
            raise UsageError(
                f"release {release} protects labels and takes the inputs for public, but the targets of text are its "
                "own next characters; use release digital"
            )

    def _ledger_before(self, resume: bool) -> Path | None:
        path = None if self.folder is None else self.folder.path / LEDGER
        return path if resume and path is not None and path.is_file() else None

    def _count_before(self) -> int:
        if self.resumed is None:
            return 0
        with Ledger.open(self.resumed, read_only=True) as ledger:
            return ledger.count()

    def _open(self, resume: bool) -> None:
        """Check everything, then write: the folder is touched once nothing but the device can be refused.

        A folder whose ledger says why the device was refused stays.
        """
        if resume:
            self.workers.told(self._refuse_other_settings)
            self._take_up()
            self.workers.told(self._refuse_beyond)
        try:
            self._make_private(lambda left: self._begin(resume, left))
        except BaseException:
            if self.folder is not None and not resume and not self._tells_why():
                self.folder.undo()
            raise

    def _tells_why(self) -> bool:
        """Whether the ledger of a run that could not begin has something to say, or nobody can tell."""
        assert self.folder is not None
        path = self.folder.path / LEDGER
        if not path.is_file():
            return False
        try:
            with Ledger.open(path, read_only=True) as ledger:
                return bool(ledger.events("health")) or ledger.count() > 0
        except UsageError:
            return True

    def _refuse_beyond(self) -> None:
        assert self.folder is not None  # a run that is resumed has one
        refuse_beyond(self.folder.path)

    def _take_up(self) -> None:
        """Load the checkpoint of the run that is resumed, if it got that far."""
        with self._kept() as (path, ledger):
            if path is None:
                return
            self.position = checkpoint.load(path, self.module, self.optimizer, ledger)
        if not self.config.private:  # its noise goes on where it was; a private run draws under new keys
            self.noise.seek(self.position.noise_position)

    @contextmanager
    def _kept(self) -> Iterator[tuple[Path | None, Ledger | None]]:
        """Checkpoint and ledger of the part before, or copies of the first worker's; None where there is none."""
        workers = self.workers
        own = None if self.folder is None else self.folder.path / CHECKPOINT
        path = own if own is not None and own.is_file() else None
        with nullcontext() if self.resumed is None else Ledger.open(self.resumed, read_only=True) as ledger:
            if workers.count == 1:
                yield path, ledger
                return
            rows = workers.told(lambda: None if ledger is None else ledger.rows())
            kept = workers.sent(lambda: b"" if path is None else path.read_bytes())
            if workers.first:
                yield path, ledger
                return
        with TemporaryDirectory() as folder, nullcontext() if rows is None else Ledger.copy(rows) as ledger:
            path = Path(folder) / CHECKPOINT
            path.write_bytes(kept)
            yield path if kept else None, ledger

    def _refuse_other_settings(self) -> None:
        """Refuse to go on under settings that make it another run: the ledger's, for a file is soon edited."""
        if self.resumed is None:
            return
        with Ledger.open(self.resumed, read_only=True) as ledger:
            before = ledger.header().get(SETTINGS)
        if not isinstance(before, dict):
            return
        now = self.config.model_dump(mode="json", exclude_none=True, exclude=LOCAL | RESUMED_ANEW)
        for name in sorted((before.keys() | now.keys()) - RESUMED_ANEW):
            if before.get(name) != now.get(name):
                raise UsageError(
                    f"the run to resume had {name} {before.get(name)!r}, not {now.get(name)!r}; resume it with its own "
                    "settings"
                )

    def _begin(self, resume: bool, left: int | None) -> None:
        """
        Args:
            left: releases that the budget allows; None without one.
        """
        if self.folder is not None:
            if resume and (left == 0 or self._taken_before() >= self._planned()):
                self.folder.refuse_other_end(self.config)
            self.folder.begin(self.config, resume=resume, overwrite=self.overwrite)
            if resume:
                self.folder.keep_metrics_until(self.position.step)

    def _planned(self) -> int:
        """Steps of the whole run."""
        config = self.config
        if not config.private:
            return config.epochs * math.ceil(len(self.x) / config.batch_size)
        return config.epochs * steps_an_epoch(config.public_size or len(self.x), config.batch_size)

    def _taken_before(self) -> int:
        return self._count_before() if self.config.private else self.position.step

    def _make_private(self, begin: Callable[[int | None], None]) -> None:
        config = self.config
        path = None if self.folder is None else self.folder.path / LEDGER
        loader: DataLoader[Any] = DataLoader(TensorDataset(self.x, self.y), batch_size=config.batch_size)
        if not config.private:
            about = {"module": self.module.describe(), ANNOUNCED: True}
            header = {"release": "none", "reproducible": False, **about, SETTINGS: self._held()}
            begin(None)
            if self.resumed:
                self.ledger = Ledger.open(self.resumed)
                self.ledger.append_settings(self._held())
            else:
                self.ledger = Ledger.create(path, header)
            self.steps_an_epoch = math.ceil(len(self.x) / config.batch_size)
            self.loader: Any = None
            return
        self.engine = PrivacyEngine(
            ledger=path,
            resume=self._goes_on,
            reproducible_seed=config.seed if config.reproducible else None,
            unsafe_diagnostics=config.unsafe_diagnostics,
            calibration=self.calibration,
            before_writing=begin,
            assumptions=self.data.public,
            settings=self._held(),
        )
        self._try_loss()
        shared: dict[str, Any] = {
            "module": self.module,
            "optimizer": self.optimizer,
            "data_loader": loader,
            "max_grad_norm": config.max_grad_norm,
            "release": config.release,
            "release_options": config.release_options,
            "public_size": config.public_size,
            "max_physical_batch_size": config.max_physical_batch_size,
            "target_delta": config.delta,
        }
        sigma = config.noise_multiplier
        if sigma is None and self._goes_on:  # calibrated when the run began
            sigma = self.workers.told(self._noise_before)
        if sigma is None:
            assert config.epsilon is not None  # resolve() sets one of the two
            made = self.engine.make_private_with_epsilon(
                **shared, target_epsilon=config.epsilon, epochs=config.epochs
            )
        else:
            made = self.engine.make_private(**shared, noise_multiplier=sigma, target_epsilon=config.epsilon)
        self.module, self.optimizer, self.loader = made
        self.steps_an_epoch = len(self.loader)
        if self.folder is not None and isinstance(self.engine.source, DarkFrameSource):
            self.folder.write_json(CALIBRATION, self.engine.source.histogram())
        if self.folder is not None and self.calibration is not None:
            self.folder.write_json(CAMERA, self.calibration.to_dict())

    def _noise_before(self) -> float:
        """The noise multiplier of the run that is resumed."""
        assert self.resumed is not None
        with Ledger.open(self.resumed, read_only=True) as before:
            return float(before.header()["noise_multiplier"])

    def _held(self) -> dict[str, Any]:
        """The settings as the ledger holds them: all but those of this machine."""
        return self.config.model_dump(mode="json", exclude_none=True, exclude=LOCAL)

    # ---- training

    def train(self, progress: Progress, ending: Ending) -> None:
        """Take the remaining steps, evaluating once an epoch and keeping a checkpoint then, and when one is due.

        Of several workers all end once one of them was asked to.
        """
        planned = self._planned()
        progress.start(planned)
        begun = seconds(self.place) - self.position.seconds
        with ending.watching():
            try:
                step = self._take_steps(planned, begun, progress, ending)
            except WorkerLostError:
                if ending.signalled and (reason := ending.reason()) is not None:
                    raise reason from None
                raise
        if self.position.step != step or math.isnan(self.accuracy):
            self._keep(step, seconds(self.place) - begun)

    def _take_steps(self, planned: int, begun: float, progress: Progress, ending: Ending) -> int:
        """Steps until all planned ones are taken or the budget is spent; how many the weights have then seen."""
        step = self.position.step
        taken = self._releases() if self.engine is not None else step
        for _ in range(step):
            self._pass_time()
        self.module.train()
        for x, y in self._batches(step):
            if taken >= planned or (self.engine is not None and self.engine.steps_left() == 0):
                break
            self._set_rate(taken / planned)
            loss, heard = self._learn(x, y, self._says(ending, step + 1))
            if loss is not None and self._diagnoses and len(x):
                self._losses.append(loss.detach() / (len(x) if self.config.private else 1))
                self._records.append(len(x))
            if self.engine is not None and self._releases() == taken:
                continue  # a part of a logical batch
            step, taken = step + 1, taken + 1
            self._pass_time()
            progress.update(taken, {})
            reason = self._ends(ending, heard) if taken < planned else None
            whole = step % self.steps_an_epoch == 0 or taken == planned
            if reason is not None:
                self._save(step, seconds(self.place) - begun)  # there may be no time for more
                self._note(self._evaluated(step))
            elif whole:
                self._keep(step, seconds(self.place) - begun)
            elif heard[1] if heard else ending.checkpoint_due(step):
                self._save(step, seconds(self.place) - begun)
            else:
                continue
            ending.kept()
            if whole or reason is not None:
                progress.update(taken, self._shown())
            if reason is not None:
                raise reason
        return step

    def _learn(self, x: Tensor, y: Tensor, said: list[int]) -> tuple[Tensor | None, list[int]]:
        """One step of the optimizer: the loss where it is known, and what workers with layers of their own agree on."""
        x, y = moved(x, self.place), moved(y, self.place)
        if self.layers is not None:
            return self.layers.step(x, y, said)
        self.optimizer.zero_grad()
        loss = self._loss(self.module(x), y)
        torch.autograd.backward(loss)
        self.optimizer.step()
        return loss, []

    def _says(self, ending: Ending, step: int) -> list[int]:
        """Of workers with layers of their own: was this one asked to end, and is a checkpoint due after this step."""
        if self.layers is None:
            return []
        own = ending.reason()
        asked = 0 if own is None else _CODES * self.workers.rank + own.exit_code
        return [asked, int(self.workers.first and ending.checkpoint_due(step))]

    def _ends(self, ending: Ending, heard: list[int]) -> EndedError | None:
        """Why all workers are to end now, whichever of them was asked to; None where they go on."""
        own = ending.reason()
        if heard:
            number, code = divmod(heard[0], _CODES)
            asked = [(number, code)] if code else []
            own = own if asked else None  # the others do not know of it yet
        else:
            codes = self.workers.meet(0 if own is None else own.exit_code)
            asked = [(number, code) for number, (code,) in enumerate(codes) if code]
        if own is not None or not asked:
            return own
        number, code = asked[0]
        return EndedError(f"ended, as worker {number} was asked to", code)

    def _try_loss(self) -> None:
        records = max(128, self.config.batch_size)
        random = torch.Generator().manual_seed(0)
        shape = (records, *self.y.shape[1:])
        logits = torch.randn(*shape, self.data.classes, generator=random)
        targets = torch.randint(0, self.data.classes, shape, generator=random)
        refuse_by_number(logits.to(self.place), targets.to(self.place))

    def _loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """Of a batch: the mean over records and positions; in a private run the sum over the records."""
        return private_loss(logits, y) if self.config.private else cross_entropy(logits, y)

    def _set_rate(self, done: float) -> None:
        """The learning rate where a share `done` of the planned steps was taken."""
        if self.config.lr_schedule == "cosine":
            for group in self.optimizer.param_groups:
                group["lr"] = self.config.lr * 0.5 * (1 + math.cos(math.pi * done))

    def _pass_time(self) -> None:
        """Let the device grow older by the time a step takes on hardware: by the EXPECTED number of records."""
        device = self.module.backend
        if device is None or device.frame_rate_hz <= 0:
            return
        ledger = None if self.engine is None else self.engine.ledger
        with nullcontext() if ledger is None else noting_failures(ledger, "ageing"):
            device.advance(self._frames_a_step() / device.frame_rate_hz)

    def _frames_a_step(self) -> int:
        """Frames with data that a step of the EXPECTED number of records takes of the device."""
        device, release = self.module.backend, None if self.engine is None else self.engine.step
        if device is None:
            return 0
        projected = self.module.projections(self.config.batch_size) * device.frames_per_record
        return projected + (0 if release is None else release.exposures)

    def _batches(self, step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches without end: Poisson ones in a private run, shuffled ones (from `step` on) otherwise."""
        if self.loader is not None:
            while True:
                yield from self.loader
        while True:
            epoch, done = divmod(step, self.steps_an_epoch)
            shuffle = torch.Generator().manual_seed(derive_seed(self.config.seed, f"shuffle epoch {epoch}"))
            order = torch.split(torch.randperm(len(self.x), generator=shuffle), self.config.batch_size)
            for records in order[done:]:
                yield self.x[records], self.y[records]
                step += 1

    def _releases(self) -> int:
        return self.engine.ledger.count() if self.engine is not None and self.engine.ledger is not None else 0

    def _save(self, step: int, seconds: float) -> None:
        """Write a checkpoint: the first worker does, of what the others bring where they have layers of their own."""
        if not self._takes_part:
            return
        drawn = 0 if self.noise.secret else self.noise.position
        self.position = checkpoint.Position(step, self._releases(), "", seconds, drawn)
        with self.layers.whole() if self.layers is not None and self._has_folder else nullcontext():
            if self.folder is None:
                return
            inner = getattr(self.optimizer, "original", self.optimizer)
            ledger = self.engine.ledger if self.engine is not None else self.ledger
            assert ledger is not None  # a run with a folder has one
            self.position = checkpoint.save(
                self.folder.path / CHECKPOINT, self.module, inner, self.position, ledger
            )

    @property
    def _takes_part(self) -> bool:
        """Whether this worker has a part in evaluating and keeping: the first, or each with layers of its own."""
        return self.workers.first or self.layers is not None

    @property
    def _evaluable(self) -> nn.Module:
        return self.module if self.layers is None else self.layers

    def _keep(self, step: int, seconds: float) -> None:
        """Evaluate, write a checkpoint, note a row of metrics: the first worker does."""
        row = self._evaluated(step)
        self._save(step, seconds)
        self._note(row)

    def _evaluated(self, step: int) -> dict[str, Any]:
        """A row of metrics; empty on a worker that takes no part."""
        if not self._takes_part:
            return {}
        self.accuracy, self.test_loss = accuracy_and_loss(self._evaluable, self.x_test, self.y_test)
        row: dict[str, Any] = {
            "step": step,
            "epoch": step / self.steps_an_epoch,
            "test_accuracy": self.accuracy,
            "test_loss": _finite(self.test_loss),
            **self._while_training(),
        }
        if self.diagnosis is not None:
            row.update(self.diagnosis.row(step, self.module))
        if self.engine is not None:
            stated = self._guarantee().to_dict()
            name = _EPSILON[stated["kind"]]
            row[name] = stated["nominal_epsilon" if name == "nominal_epsilon" else "epsilon"]
        return row

    def _while_training(self) -> dict[str, Any]:
        """Means over the steps since the last row; of workers with layers of their own the last one knows the loss."""
        means: dict[str, Any] = {}
        if self._losses:
            means["training_loss"] = _finite(float(torch.stack(self._losses).mean()))
            means["mean_batch_size"] = sum(self._records) / len(self._records)
            self._losses, self._records = [], []
        return means if self.layers is None else self.workers.gather(means)[-1]

    def _note(self, row: dict[str, Any]) -> None:
        if self.folder is not None:
            self.folder.add_metrics(row)
            if self.engine is not None and isinstance(self.engine.step, PerRecordRelease):
                self.folder.write_json(CERTIFICATE, self.engine.step.certificate.to_dict())
        self._last = row

    def _shown(self) -> dict[str, float | str]:
        """What the progress line may show of a private run: public figures only, unless the user insists."""
        if not self.workers.first:
            return {}
        names = ("test_accuracy", *_EPSILON.values())
        shown = {name.replace("_", " "): self._last[name] for name in names if name in self._last}
        return shown if self.diagnosis is None else {**shown, **self.diagnosis.shown()}

    # ---- what is said at the end

    def _guarantee(self) -> Guarantee:
        if self.engine is None:
            return Guarantee.of_run({"release": "none", "reproducible": False}, math.inf, 0.0, "none")
        assert self.config.delta is not None  # resolve() sets it for a private run
        return self.engine.get_guarantee(self.config.delta)

    def area(self) -> float | None:
        """Under the ROC curve, of two classes; None of others, and on a worker that takes no part."""
        if self.data.classes != 2 or not self._takes_part:
            return None
        return area_under_curve(self._evaluable, self.x_test, self.y_test)

    def summarise(self, seconds: float, area: float | None) -> dict[str, Any]:
        """The summary, also written to the run folder.

        Args:
            seconds: that all parts of the run took.
            area: under the ROC curve.
        """
        config, stated = self.config, self._guarantee()
        header = (
            self.engine.ledger.header() if self.engine is not None and self.engine.ledger is not None else {}
        )
        device = self.module.backend
        frames = self.position.step * self._frames_a_step()
        summary: dict[str, Any] = {
            "dataset": config.dataset,
            "model": config.model,
            "rule": config.rule,
            "backend": config.backend,
            "release": config.release,
            "epochs": config.epochs,
            "steps": self.position.step,
            "releases": self._releases() if self.engine is not None else None,
            "batch_size": config.batch_size,
            "sample_rate": header.get("sample_rate"),
            "seed": config.seed,
            "test_accuracy": self.accuracy,
            "test_auc": area,
            "test_loss": _finite(self.test_loss),
            "guarantee": stated.to_dict(),
            "target_epsilon": config.epsilon,
            "noise_multiplier": header.get("noise_multiplier"),
            "max_grad_norm": config.max_grad_norm,
            "parameters": sum(p.numel() for p in self.module.parameters()),
            "seconds": round(seconds, 3),
            "seconds_per_step": self.position.seconds / max(1, self.position.step),
            "data_frames": frames,
            "hardware_seconds": frames / device.frame_rate_hz
            if device is not None and device.frame_rate_hz
            else 0.0,
            "versions": {
                "optical-dfa": version("optical-dfa"),
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
        }
        if self.diagnosis is not None:
            summary["cost_per_record"] = self.diagnosis.costs
        if self.folder is not None:
            self.folder.write_json(SUMMARY, summary)
        return summary

    def close(self) -> None:
        """Close ledger and device."""
        if self.diagnosis is not None:
            self.diagnosis.close()
        if self.engine is not None:
            self.engine.close()
        if self.ledger is not None:
            self.ledger.close()
        if self.module.backend is not None:
            self.module.backend.close()


def _refuse_workers(config: TrainConfig, workers: Workers) -> None:
    """What several workers do not do."""
    if workers.count == 1:
        return
    if not config.private:
        raise UsageError(
            f"release none on {workers.count} workers is not served, which add up whole numbers that are released with "
            "noise; add --parallel layers, train in one process, or write a script with torch's DistributedDataParallel"
        )
    if config.unsafe_diagnostics:
        raise UsageError(
            f"unsafe_diagnostics on {workers.count} workers would show figures of one worker's records for all; drop "
            "it, or train in one process"
        )


def _data(config: TrainConfig) -> Dataset:
    return load_data(config.dataset, config.data_dir, progress=True)


# Under which name a row of metrics gives epsilon: one that is no worst-case guarantee is never a bare one.
_EPSILON = {
    Kind.RECORD_DP: "epsilon",
    Kind.LABEL_DP: "epsilon",
    Kind.CONDITIONAL: "conditional_epsilon",
    Kind.NONE: "nominal_epsilon",
}


def _points(network: nn.Module, rule: Rule, chosen: str | list[str] | None) -> list[str] | None:
    """Where the network is cut: by name, or as its kind says, unless the rule has a mind of its own (None)."""
    if isinstance(chosen, list):
        return chosen
    own = type(rule).default_points is not Rule.default_points
    if chosen is not None and (own or not rule.cuts):
        raise UsageError(
            f"points is {chosen!r}, but rule {rule.name} {'cuts where it must' if own else 'cuts nothing'}; drop points"
        )
    return None if own else models.feedback_points(network, chosen)


def _optimizer(config: ResolvedConfig, module: nn.Module) -> Optimizer:
    parameters = module.parameters()
    if config.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=config.lr, weight_decay=config.weight_decay)
    return torch.optim.SGD(
        parameters, lr=config.lr, momentum=config.momentum or 0.0, weight_decay=config.weight_decay
    )


def _finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None
