"""PrivacyEngine: make a training loop private by changing two lines.

    module, optimizer, loader = engine.make_private(module=..., optimizer=..., data_loader=...,
                                                    noise_multiplier=1.1, max_grad_norm=1.0, release="digital")

The loop stays `zero_grad / loss.backward() / optimizer.step()`. Every step is written to the ledger before it is
released; training stops on the budget. A device is tested before the first release and before every other one: what
it drew is released only once its tests have passed.
"""

from __future__ import annotations

import json
import math
import secrets
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from importlib.metadata import version
from inspect import signature
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from noise_models.calibration.document import Document
from noise_models.errors import UsageError
from noise_models.randomness.generator import NoiseGenerator, derive_seed
from privacy import accounting, checkpoint, health_log
from privacy.arguments import refuse_arguments, refuse_reduction, refuse_types
from privacy.contributions.protocols import PrivateModule
from privacy.errors import BudgetExhaustedError
from privacy.fixed import Fixed
from privacy.guarantee import Guarantee
from privacy.ledger import SETTINGS, Ledger, ReleaseEvent, Row
from privacy.norms import refuse_norm
from privacy.notions import Kind
from privacy.optimizer import PrivateOptimizer
from privacy.releases import RELEASES, calibrations, refuse_unknown_options, terms
from privacy.releases.source import Parts, Source
from privacy.releases.step import StepRelease, refusal_of_workers
from privacy.sampling import PoissonLoader, PrivateLoader, PublicLoader, SamplingPlan
from privacy.secrecy import draws_from_the_process, foreign, unsecret
from privacy.validation import Validation, validate
from privacy.weights import ANNOUNCED
from privacy.workers import Workers, bits

ModuleT = TypeVar("ModuleT", bound=nn.Module)

# Wrappers for several processes or devices, and what is wrong with them.
_AVERAGES = "would average gradients that were neither clipped nor noised"
_SPLITS = "splits records' contributions over devices, where no norm of a whole one is known"
_PARALLEL = {
    "DataParallel": _SPLITS,
    "DistributedDataParallel": _AVERAGES,
    "DifferentiallyPrivateDistributedDataParallel": "averages what every worker noised by itself",
    "FullyShardedDataParallel": _SPLITS,
    "FSDPModule": _SPLITS,
}
# What is compared between workers and not shown, and what helps.
_SIZE, _SAMPLE = "number of records", "sample of the records"
_UNSHOWN = {
    _SIZE: "give every worker the whole data set, of which it takes its share",
    _SAMPLE: "give every worker the same records in the same order (a random_split needs a seeded generator)",
}

# A bound far from any use (as are those of privacy.norms), within which float32 noise neither overflows nor loses its
# low bits.
MOST_NOISE = 1e6


class PrivacyEngine(Fixed):
    """Holds the ledger and the accountant of one private run. Its attributes are read-only."""

    # Until `make_private` has settled them.
    _changing = frozenset(
        {
            "_ledger",
            "_step_release",
            "_accountant",
            "_limit",
            "_epochs",
            "_terms",
            "_rate",
            "_beta",
            "_failed",
            "_workers",
            "_told",
        }
    )

    def __init__(
        self,
        *,
        ledger: Path | str | None = None,
        resume: bool = False,
        reproducible_seed: int | None = None,
        unsafe_diagnostics: bool = False,
        accountant: str | None = None,
        calibration: Document | None = None,
        before_writing: Callable[[int | None], None] | None = None,
        assumptions: Sequence[str] = (),
        settings: Mapping[str, Any] | None = None,
        **opacus: Any,
    ) -> None:
        """
        Args:
            ledger: file of the ledger; None keeps it in memory.
            resume: continue the ledger that is there. Keys are always new.
            reproducible_seed: seed all generators, for experiments; the guarantee's kind is then `none`.
            unsafe_diagnostics: the caller shows figures computed from private records; the guarantee's kind is
                then `none`.
            accountant: one of the release's mechanism (`privacy.mechanisms`); None is its default.
            calibration: what the device's noise was measured to be, for releases that credit it; the ledger names
                it, and no other may go on with the run.
            before_writing: called by `make_private` once everything was checked, just before the ledger is
                created or continued, with the releases that the budget allows (None without one).
            assumptions: what the caller takes for granted besides; printed with the guarantee.
            settings: of the caller's training (JSON types), for the ledger to hold: an audit compares them. Those of a
                resumed run may be others; a row of its own then says so.
            **opacus: Opacus' other arguments, where they ask for nothing else (`secure_mode`).
        Raises:
            UsageError: an argument that there is not.
        """
        refuse_arguments("PrivacyEngine", opacus, _arguments(PrivacyEngine.__init__))
        if reproducible_seed is not None and not hasattr(reproducible_seed, "__index__"):
            raise UsageError(f"reproducible_seed is {reproducible_seed!r:.40}; it must be a whole number")
        if isinstance(assumptions, str):  # it would be taken letter by letter
            raise UsageError(f"assumptions is {assumptions!r:.80}; it must be a list of texts")
        self._ledger: Ledger | None = None
        self._step_release: StepRelease | None = None
        self._path = None if ledger is None else Path(ledger)
        self._resume = resume
        self._seed = reproducible_seed
        self._unsafe = unsafe_diagnostics
        self._accountant = accountant
        self._calibration = calibration
        self._before_writing = before_writing
        self._assumptions = tuple(assumptions)
        self._settings = None if settings is None else dict(settings)
        self._limit: int | None = None
        self._epochs = 0  # public batches: what the budget allows of them, should a batch get lost
        self._terms = terms("digital")  # of the release that make_private is asked for
        self._rate = 1.0
        self._beta = 0.0
        self._failed = False
        self._workers = Workers()
        self._told = 0  # rows of the ledger that the other workers have
        self._fix()

    @property
    def ledger(self) -> Ledger | None:
        """The record of every release; None before `make_private`."""
        return self._ledger

    @property
    def step(self) -> StepRelease | None:
        """The release of a step; None before `make_private`."""
        return self._step_release

    @property
    def source(self) -> Source | None:
        """Where its noise comes from; None before `make_private`."""
        return None if self._step_release is None else self._step_release.source

    @property
    def accountant(self) -> NoReturn:
        """Opacus' accountant, which scripts ask for epsilon.

        Raises:
            UsageError: always; the figure comes from the ledger.
        """
        raise UsageError(
            "epsilon is accounted for from the ledger; ask engine.get_epsilon(delta), or get_guarantee(delta) for all "
            "that it rests on"
        )

    # ---- the Opacus-style face

    def make_private(
        self,
        *,
        module: ModuleT,
        optimizer: Optimizer,
        data_loader: DataLoader[Any],
        noise_multiplier: float,
        max_grad_norm: float | None = None,
        release: str = "digital",
        poisson_sampling: bool = True,
        public_size: int | None = None,
        max_physical_batch_size: int | None = None,
        target_epsilon: float | None = None,
        target_delta: float | None = None,
        release_options: Mapping[str, Any] | None = None,
        **opacus: Any,
    ) -> tuple[ModuleT, PrivateOptimizer, PrivateLoader]:
        """Train `module` privately from now on.

        Args:
            module: an aligned module (optical_dfa.align); its trained layers record contributions.
            optimizer: any torch optimizer over its parameters.
            data_loader: its data set, collate function and batch size (the EXPECTED one) are used; batches are
                redrawn, by Poisson sampling unless the release works on public ones.
            noise_multiplier: standard deviation of the noise over the sensitivity of the clipped sum, > 0.
            max_grad_norm: C, clipping norm of one record's whole stack; None where the release does not clip.
            release: a name of `privacy.releases.RELEASES`.
            poisson_sampling: must be True; the argument is there for Opacus users.
            public_size: N, declared public; the sample rate is batch size / N. Default: the size of the data set,
                which is then public.
            max_physical_batch_size: steps larger than this are handed out in parts; step on every part.
            target_epsilon: a budget; a release that would pass it raises BudgetExhaustedError.
            target_delta: delta of the budget and of the ledger's statement.
            release_options: the release's own settings (`privacy.releases.Terms.options`).
            **opacus: Opacus' other arguments, where they ask for nothing else.
        Returns:
            (module, optimizer, loader) to use in place of the given ones.
        Raises:
            UsageError: anything that would break the guarantee, before anything is released.
            DeviceError: the device's dark frames are not as credited, or its calibration does not serve; the ledger
                says why.
        """
        _refuse_other_arguments(self.make_private, opacus, module)
        refuse_types({"noise_multiplier": noise_multiplier}, {})
        if not 0 < noise_multiplier <= MOST_NOISE:
            raise UsageError(
                f"noise_multiplier is {noise_multiplier}; a private release needs a positive number up to "
                f"{MOST_NOISE:g}"
            )
        budget = {"target_epsilon": target_epsilon, "target_delta": target_delta}
        refuse_types({name: value for name, value in budget.items() if value is not None}, {})
        if target_epsilon is not None and target_delta is None:
            raise UsageError("a budget is target_epsilon at target_delta; give target_delta too")
        plan = SamplingPlan(data_loader, poisson_sampling, public_size, max_physical_batch_size)
        return self._make(
            module,
            optimizer,
            plan,
            release,
            max_grad_norm,
            lambda step: noise_multiplier,
            target_epsilon,
            target_delta,
            {} if release_options is None else release_options,
        )

    def make_private_with_epsilon(
        self,
        *,
        module: ModuleT,
        optimizer: Optimizer,
        data_loader: DataLoader[Any],
        target_epsilon: float,
        target_delta: float,
        epochs: int,
        max_grad_norm: float | None = None,
        release: str = "digital",
        poisson_sampling: bool = True,
        public_size: int | None = None,
        max_physical_batch_size: int | None = None,
        release_options: Mapping[str, Any] | None = None,
        **opacus: Any,
    ) -> tuple[ModuleT, PrivateOptimizer, PrivateLoader]:
        """As `make_private`, with the least noise that keeps `epochs` epochs within the target.

        Raises:
            UsageError: as `make_private`, or a target that no noise reaches.
        """
        _refuse_other_arguments(self.make_private_with_epsilon, opacus, module)
        refuse_types({"target_epsilon": target_epsilon, "target_delta": target_delta}, {"epochs": epochs})
        if epochs < 1:
            raise UsageError(f"epochs is {epochs}; it must be at least 1")
        plan = SamplingPlan(data_loader, poisson_sampling, public_size, max_physical_batch_size)

        def calibrate(step: StepRelease) -> float:
            return accounting.least_noise(
                target_epsilon,
                target_delta,
                lambda sigma: step.planned(self._rate, sigma, epochs * plan.steps),
                self._terms.adjacency,
                self._accountant,
                beta=self._beta,
            )

        return self._make(
            module,
            optimizer,
            plan,
            release,
            max_grad_norm,
            calibrate,
            target_epsilon,
            target_delta,
            {} if release_options is None else release_options,
        )

    def get_epsilon(self, delta: float) -> float:
        """Epsilon of everything released so far, at `delta`; inf if the run gives no worst-case guarantee.

        A conditional epsilon never stands alone: `get_guarantee` has it, with what it rests on.

        Raises:
            UsageError: before `make_private`, or a delta outside (0, 1).
        """
        guarantee = self.get_guarantee(delta)
        return math.inf if guarantee.kind is Kind.CONDITIONAL else guarantee.epsilon

    def get_guarantee(self, delta: float) -> Guarantee:
        """The statement about everything released so far: epsilon with all that it depends on."""
        if self.ledger is None:
            raise UsageError("there is no guarantee before make_private")
        header = self.ledger.header()
        epsilon = accounting.epsilon(
            self.ledger.tally(), delta, self._terms.adjacency, header["accountant"], beta=self._beta
        )
        return Guarantee.of_run(header, epsilon, delta, header["accountant"])

    def validate(
        self,
        module: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        *,
        inputs: Tensor | Sequence[Tensor] | None = None,
        targets: Tensor | None = None,
    ) -> Validation:
        """Try whether `module` and `loss` keep records apart, before `make_private` (`privacy.validation.validate`)."""
        return validate(module, loss, inputs=inputs, targets=targets)

    def steps_left(self) -> int | None:
        """Releases the budget still allows; None without a budget."""
        if self.ledger is None or self._limit is None:
            return None
        return max(0, self._limit - self.ledger.count())

    def save_checkpoint(
        self, *, path: Path | str, module: nn.Module, optimizer: PrivateOptimizer, **opacus: Any
    ) -> None:
        """Keep the module's weights and the optimizer's state, both released, in one safetensors file.

        The ledger names them. A scheduler's own state, and what the optimizer's groups hold (a learning rate), are the
        script's to keep. Of several workers the first writes, and a call of another does nothing.

        Args:
            path: of the file, which is replaced whole.
            module, optimizer: those that `make_private` returned.
            **opacus: Opacus' other arguments are refused.
        Raises:
            UsageError: before `make_private`, or with a ledger that is in memory only.
        """
        refuse_arguments("save_checkpoint", opacus, _arguments(self.save_checkpoint))
        if not self._workers.first:
            return
        ledger = self._kept_ledger()
        releases = ledger.count()
        position = checkpoint.Position(releases, releases, "", 0.0)
        checkpoint.save(Path(path), module, _private(optimizer), position, ledger)

    def load_checkpoint(
        self, *, path: Path | str, module: nn.Module, optimizer: PrivateOptimizer, **opacus: Any
    ) -> None:
        """Put module and optimizer where `save_checkpoint` kept them; what was spent since is not given back.

        A new process makes the module private again first, on the same ledger: `PrivacyEngine(ledger=, resume=True)`.

        Args:
            path: of the file.
            module, optimizer: those that `make_private` returned.
            **opacus: Opacus' other arguments are refused.
        Raises:
            UsageError: as `save_checkpoint`; an unreadable file, or one that the ledger does not know.
        """
        refuse_arguments("load_checkpoint", opacus, _arguments(self.load_checkpoint))
        ledger = self._kept_ledger()
        checkpoint.load(Path(path), module, _private(optimizer), ledger)

    def _kept_ledger(self) -> Ledger:
        if self._ledger is None:
            raise UsageError("there are no private weights before make_private; call it first")
        if self._path is None:
            raise UsageError(
                "the ledger is in memory only, and weights without one have no guarantee; give "
                "PrivacyEngine(ledger=FILE)"
            )
        return self._ledger

    def close(self) -> None:
        """Close the ledger."""
        if self.ledger is not None:
            self.ledger.close()

    # ---- how it is put together

    def _make(
        self,
        module: ModuleT,
        optimizer: Optimizer,
        plan: SamplingPlan,
        release: str,
        max_grad_norm: float | None,
        noise_multiplier: Callable[[StepRelease], float],
        target_epsilon: float | None,
        target_delta: float | None,
        options: Mapping[str, Any],
    ) -> tuple[ModuleT, PrivateOptimizer, PrivateLoader]:
        """`noise_multiplier` is asked once the cost of one step is known."""
        if self._ledger is not None:
            raise UsageError("this engine already serves a module; take a new PrivacyEngine for another")
        if target_delta is not None and not 0 < target_delta < 1 / plan.size:
            raise UsageError(
                f"target_delta is {target_delta}; it must be positive and below 1/N = {1 / plan.size}, or "
                "publishing whole records would pass for private"
            )
        self._terms = terms(release)
        refuse_unknown_options(release, options)
        norm = _clipping_norm(max_grad_norm, release)
        face = _private_face(module)
        workers = self._workers = Workers.here()
        if len({tuple(found) for found in workers.gather([release, bool(self._resume)])}) > 1:
            raise UsageError(
                "workers were told different releases, or some to resume and others not; start all with the same "
                "settings (resume= by what the first finds)"
            )
        if workers.count > 1 and not self._terms.workers:
            raise UsageError(refusal_of_workers(release, workers.count))
        self._accountant = accounting.accountant_for(self._terms.mechanism, self._accountant)
        resumed = self._resumed()
        with ExitStack() as undo:
            if resumed is not None:
                undo.callback(resumed.close)
            undo.callback(face.stop_capture)
            with workers.telling():
                step = self._release(release, face, plan, norm, resumed, options)
                source, capture = step.source, step.contributions
                coins, masks = self._generator("sampling", resumed), self._generator("masks", resumed)
                self._beta = source.beta
                self._rate = 1.0 if self._terms.public_batches else plan.sample_rate
            workers.meet()
            sigma = workers.told(lambda: noise_multiplier(step))
            with workers.telling():
                step.prepare(sigma)
                event = step.event(self._rate, sigma)
                self._refuse_worthless(event, target_delta)
                reasons = _not_secret(face, step)
                header = self._header(
                    face, event, step, plan, max_grad_norm, target_epsilon, target_delta, reasons
                )
            workers.meet()
            if reasons and self._seed is None:
                warnings.warn(
                    f"the guarantee of this run is of kind none: {reasons[0]}; leave noise= of align out, or give it "
                    'NoiseGenerator.secure("device")',
                    stacklevel=3,
                )
            epoch = 0 if resumed is None else 1 + max((row.epoch for row in resumed.tally()), default=-1)
            if self._terms.public_batches:
                header["batches_seed"] = self._batches_seed(resumed)
                loader: PrivateLoader = PublicLoader(
                    plan.loader, plan.steps, header["batches_seed"], epoch, plan.max_physical_batch_size
                )
            else:
                loader = PoissonLoader(
                    plan.loader, plan.sample_rate, plan.steps, coins, plan.max_physical_batch_size, workers
                )
            self._refuse_unlike(header, loader)
            private = PrivateOptimizer(
                optimizer,
                capture,
                module,
                lambda: self._step(loader, step, sigma, module),
                noise_multiplier=sigma,
                max_grad_norm=max_grad_norm,
                expected_batch_size=plan.expected_batch_size,
            )
            undo.callback(private.hand_back)
            keys = workers.gather(
                [[g.fingerprint(), g.name, g.secret] for g in (*step.generators, coins, masks)]
            )
            opened = [] if resumed is None else [resumed]
            length = 0 if resumed is None else resumed.length

            def begin() -> tuple[list[Row], int | None]:
                """The ledger's rows, before which nothing was written, and the releases that the budget allows."""
                allowed = None
                if target_epsilon is not None and target_delta is not None:
                    allowed = accounting.releases_within(
                        target_epsilon,
                        target_delta,
                        lambda steps: step.planned(self._rate, sigma, steps, epoch=epoch),
                        self._terms.adjacency,
                        self._accountant,
                        spent={} if resumed is None else resumed.tally(),
                        beta=self._beta,
                    )
                ledger = self._open(header, resumed, allowed)
                if resumed is None:
                    undo.callback(ledger.close)
                    opened.append(ledger)
                for fingerprint, name in _own_keys(keys):
                    ledger.register_key(fingerprint, name)
                health_log.start_up(source, ledger)
                return ledger.rows(length), allowed

            rows, allowed = workers.told(begin)
            if workers.first:
                ledger = opened[0]
            elif resumed is None:
                ledger = Ledger.copy(rows)
            else:
                (ledger := resumed).follow(rows)
            if allowed is not None:
                self._limit = ledger.count() + allowed
                self._epochs = epoch + math.ceil(allowed / plan.steps)
            undo.pop_all()
        capture.expected_records = lambda: _pending(loader)
        capture.masks = masks
        capture.fix()
        self._ledger, self._step_release = ledger, step
        for part in (step, source):
            part._fix()
        self._told = ledger.length
        self._fix(frozenset({"_failed", "_told"}))
        return module, private, loader

    def _refuse_unlike(self, header: Mapping[str, Any], loader: PrivateLoader) -> None:
        """
        Raises:
            UsageError: a worker was given other settings or records than the first.
        """
        workers = self._workers
        if workers.count == 1:
            return
        with workers.telling():
            sample, drawn = loader.sample()
            given = {**json.loads(json.dumps(header)), _SIZE: len(loader.dataset), _SAMPLE: sample}
            if sample is None:
                raise UsageError(
                    f"{workers.count} workers cannot tell whether they hold the same records in the same order: they "
                    "do not read alike under one seed, or are of types that cannot be compared; give tensors, arrays "
                    "or numbers and draw from torch's generator, or train in one process"
                )
        said = workers.meet(torch.initial_seed() % (1 << 62), int(drawn))
        if len({seed for seed, _ in said}) == 1 and any(random for _, random in said):
            raise UsageError(
                "records are augmented at random, and torch's generator was seeded alike on every worker; call "
                "torch.seed() after the network is built, so that the augmentation is secret"
            )
        firsts = workers.told(lambda: given)
        unlike = next((key for key, value in given.items() if value != firsts.get(key)), None)
        found = workers.gather(unlike)
        for number, key in enumerate(found):
            if key in _UNSHOWN:
                raise UsageError(f"worker {number} has another {key} than worker 0: {_UNSHOWN[key]}")
            if key is not None:
                raise UsageError(
                    f"worker {number} was given another {key} than worker 0; start all workers with the same settings"
                )

    def _add_up(self, step: StepRelease, ledger: Ledger, module: nn.Module) -> None:
        """Meet the other workers at the end of a step's batches, and let the first hold what all took in.

        Raises:
            UsageError: one of them is at another step or has other weights, or stopped.
        """
        workers = self._workers
        if workers.count == 1:
            return
        found = workers.meet(ledger.count(), bits((*module.parameters(), *module.buffers())))
        for number, (count, weights) in enumerate(found):
            if count != found[0][0]:
                raise UsageError(
                    f"worker {number} is at step {count + 1} and worker 0 at step {found[0][0] + 1}; nothing is "
                    "released: give every worker the same loop"
                )
            if weights != found[0][1]:
                raise UsageError(
                    f"worker {number} has other weights than worker 0; nothing is released: build or load the same "
                    "ones on every worker (torch.manual_seed before the network, torch.seed() after it), and step "
                    "schedules once a release"
                )
        step.add_up(workers)

    def _step(
        self, loader: PrivateLoader, step: StepRelease, noise_multiplier: float, module: nn.Module
    ) -> Tensor | None:
        """One `optimizer.step()`: take the batch in; if it completes the step, write the ledger and release."""
        batch, ledger, workers = loader.pending, self._ledger, self._workers
        if (here := Workers.here()) != workers:
            raise UsageError(
                f"this is process {here.rank} of {here.count}, and was {workers.rank} of {workers.count} when it made "
                "the module private; initialise the process group before make_private, and leave it"
            )
        if self._failed:
            raise UsageError(
                "an earlier step failed half-way, so no further one is released; resume from the ledger"
            )
        if batch is None or ledger is None:
            raise UsageError("step() without a new batch from the private loader; step once on every batch")
        spent = self._limit is not None and (
            ledger.count() >= self._limit or (self._terms.public_batches and batch.epoch >= self._epochs)
        )
        if batch.first and spent:
            raise BudgetExhaustedError(
                f"the budget of {self._limit} releases is spent; a further step would pass the target epsilon"
            )
        if batch.records and not step.contributions.taught:
            raise UsageError(
                "no backward pass has reached this batch, or zero_grad() dropped it; never leave one out (a record "
                "that is not finite already contributes zero)"
            )
        released = []

        def release() -> list[Row]:
            """The rows since the release before, its own the last: on disk before anything is released."""
            with health_log.noting_failures(ledger, "step"):
                step.add_noise(noise_multiplier)
                step.source.vouch()
            health_log.register_new_keys(step.source, ledger)
            health_log.note_frames(step.source, ledger)
            ledger.append_release(step.event(self._rate, noise_multiplier, batch.epoch))
            released.append(step.release())
            return ledger.rows(self._told) if workers.count > 1 else []

        try:
            with workers.telling():
                step.absorb(first=batch.first)
                loader._note_step()
            if not batch.final:
                return None
            self._add_up(step, ledger, module)
            rows = workers.told(release)
            if not workers.first:
                ledger.follow(rows)
                released.append(_empty_gradient(step))
            self._told = ledger.length
            return workers.hand_out(released[0])
        except BaseException:
            self._failed = True
            step.discard()
            raise

    def _refuse_worthless(self, event: ReleaseEvent, delta: float | None) -> None:
        """A release after which no epsilon can be stated is not made."""
        if delta is None:
            return
        notion = self._terms.adjacency
        if math.isinf(accounting.epsilon({event: 1}, delta, notion, self._accountant, beta=self._beta)):
            raise UsageError(
                f"one release with noise multiplier {event.noise_multiplier} has no finite epsilon at delta "
                f"{delta} (its noise is exact up to a mass of {event.mass:.2g}); raise one of the two"
            )

    def _generator(self, name: str, resumed: Ledger | None) -> NoiseGenerator:
        """A secret generator of this worker's, or a seeded one that no earlier part of this run has used.

        Of a seed all workers draw the same sampling coins, each its own records'.
        """
        if self._seed is None or name != "sampling":
            name = self._workers.name(name)
        if self._seed is None:
            return NoiseGenerator.secure(name)
        part = 0 if resumed is None else resumed.count()
        return NoiseGenerator.seeded(self._seed, f"{name} from release {part}")

    def _release(
        self,
        release: str,
        face: PrivateModule,
        plan: SamplingPlan,
        max_grad_norm: float,
        resumed: Ledger | None,
        options: Mapping[str, Any],
    ) -> StepRelease:
        if self._calibration is not None and not isinstance(self._calibration, calibrations(release)):
            raise UsageError(
                f"the calibration is of a {self._calibration.of}, which is not what release {release} relies on; give "
                "the one that calibrate (for release photon: calibrate --photon) wrote"
            )
        parts = Parts(
            device=face.backend,
            generator=lambda name: self._generator(name, resumed),
            diagnoses=self._unsafe,
            start_capture=partial(
                face.start_capture,
                rows=None if self._terms.public_batches else plan.block_rows(self._workers.count),
            ),
            max_grad_norm=max_grad_norm,
            expected_batch_size=plan.expected_batch_size,
            max_physical_batch_size=plan.max_physical_batch_size,
            steps_an_epoch=plan.steps,
            calibration=self._calibration,
            known=() if resumed is None else health_log.known_digests(resumed),
            resumed=None if resumed is None else resumed.header().get("credit"),
            options=options,
        )
        made: StepRelease = RELEASES.load(release)(parts)
        return made

    def _batches_seed(self, resumed: Ledger | None) -> int:
        """Public: in the ledger."""
        if resumed is not None:
            return int(resumed.header().get("batches_seed", 0))  # a run without one is refused by its release
        return secrets.randbits(63) if self._seed is None else derive_seed(self._seed, "public batches")

    def _resumed(self) -> Ledger | None:
        """The ledger that goes on: of several workers the first's, and a copy of it."""
        if not self._resume:
            return None
        opened: list[Ledger] = []

        def rows() -> list[Row]:
            if self._path is None:
                raise UsageError("there is no ledger to resume; give its path")
            opened.append(Ledger.open(self._path))
            return opened[0].rows() if self._workers.count > 1 else []

        found = self._workers.told(rows)
        return opened[0] if opened else Ledger.copy(found)

    def _header(
        self,
        module: PrivateModule,
        event: ReleaseEvent,
        step: StepRelease,
        plan: SamplingPlan,
        max_grad_norm: float | None,
        target_epsilon: float | None,
        target_delta: float | None,
        reasons: Sequence[str],
    ) -> dict[str, Any]:
        """Everything the audit needs; equal for every part of a run.

        Args:
            reasons: why the run's randomness is not secret.
        """
        source = step.source
        secret = self._seed is None and not reasons
        told = (
            [] if self._seed is not None else [f"NOT so: randomness is secret ({text})" for text in reasons]
        )
        return {
            "release": source.name,
            "adjacency": self._terms.adjacency.value,
            "mechanism": step.mechanism,
            "accountant": self._accountant,
            "sample_rate": event.sample_rate,
            "noise_multiplier": event.noise_multiplier,
            "max_grad_norm": max_grad_norm,
            "sensitivity": event.sensitivity,
            "dimension": event.dimension,
            "nominal_size": plan.size,
            "batch_size": plan.expected_batch_size,
            "target_epsilon": target_epsilon,
            "delta": target_delta,
            "reproducible": not secret,
            "unsafe_diagnostics": self._unsafe,
            "device_share": source.device_share,
            "calibration_beta": source.beta,
            "calibration": health_log.identity(source.calibration),
            "credit": step.describe(),
            "assumptions": [
                *told,
                *source.assumptions,
                *module.assumptions,
                *self._assumptions,
                *step.assumptions,
            ],
            "module": module.describe(),
            "version": version("optical-dfa"),
        }

    def _open(self, header: dict[str, Any], resumed: Ledger | None, allowed: int | None) -> Ledger:
        if resumed is not None:
            before = resumed.header()
            health_log.refuse_other_calibration(resumed, header)
            for key, value in json.loads(json.dumps(header)).items():
                if before.get(key) != value:
                    raise UsageError(
                        f"the run to resume had {key} {before.get(key)!r}, not {value!r}; resume it with its own "
                        "settings"
                    )
        if self._before_writing is not None:
            self._before_writing(allowed)
        if resumed is not None and self._settings is not None:
            resumed.append_settings(self._settings)
        if self._settings is not None:
            header[SETTINGS] = self._settings
        # A ledger of before weights were named goes on without: it is the beginning that announces them.
        return Ledger.create(self._path, {**header, ANNOUNCED: True}) if resumed is None else resumed


def _private_face(module: nn.Module) -> PrivateModule:
    """The module as one that can be made private."""
    if not isinstance(module, nn.Module):
        raise UsageError(
            f"module is a {type(module).__name__}; give the module that optical_dfa.align returned"
        )
    for part in module.modules():
        if wrapped := _wrapped(part):
            raise UsageError(f"contributions are noted in Python, layer by layer, and the module {wrapped}")
    if isinstance(module, PrivateModule):
        return cast(PrivateModule, module)
    raise UsageError(
        f"module is a {type(module).__name__}; give the aligned module itself: optical_dfa.align(module, "
        'rule="dfa"), or rule="bp" for backpropagation'
    )


def _wrapped(part: nn.Module) -> str | None:
    """What stands between the user's module and its layers, and the remedy."""
    if isinstance(part, torch.jit.ScriptModule):
        return "is scripted or traced (torch.jit); align the plain module"
    if hasattr(part, "_orig_mod") or getattr(part, "_compiled_call_impl", None) is not None:
        return "is compiled (torch.compile); align the plain module, and leave torch.compile out"
    wrapper = next((kind.__name__ for kind in type(part).__mro__ if kind.__name__ in _PARALLEL), None)
    if wrapper is not None:
        return (
            f"is wrapped in {wrapper}, which {_PARALLEL[wrapper]}; align the plain module, and start the script with "
            "torchrun: the engine adds up what the workers take in"
        )
    if any(is_lazy(p) for p in (*part.parameters(False), *part.buffers(False))):
        return f"has a lazy {type(part).__name__} without a shape; run it on one example before align"
    return None


def _not_secret(module: PrivateModule, step: StepRelease) -> tuple[str, ...]:
    """Why the randomness of the run's passes and of its noise is not secret; () where it is."""
    device, rule = module.backend, getattr(module, "rule", None)
    reasons = unsecret(module, device, step, step.source)
    reasons += tuple(f"generator {g.name!r} is seeded" for g in step.generators if not g.secret)
    if device is not None and foreign(device, rule):
        project = module.signals if foreign(rule) else device.project  # type: ignore[attr-defined]
        reasons += draws_from_the_process(lambda: project(torch.zeros(1, device.in_features)))
    return reasons


def _refuse_other_arguments(call: Callable[..., Any], opacus: Mapping[str, Any], module: object) -> None:
    """Opacus' arguments, and others, that `call` does not name."""
    given = dict(opacus)
    refuse_reduction(given.pop("loss_reduction", None), getattr(module, "loss_reduction", "mean"))
    refuse_arguments(call.__name__, given, _arguments(call))


def _private(optimizer: PrivateOptimizer) -> PrivateOptimizer:
    if not isinstance(optimizer, PrivateOptimizer):
        raise UsageError(
            f"optimizer is a {type(optimizer).__name__}; give the one that make_private returned"
        )
    return optimizer


def _arguments(call: Callable[..., Any]) -> list[str]:
    return [name for name, p in signature(call).parameters.items() if p.kind is p.KEYWORD_ONLY]


def _clipping_norm(given: float | None, release: str) -> float:
    """C; 1 where the release does not clip."""
    if not terms(release).clips:
        if given is not None:
            raise UsageError(f"max_grad_norm is {given}, but release {release} does not clip; leave it out")
        return 1.0
    refuse_types({"max_grad_norm": given}, {})
    assert given is not None  # refuse_types refuses it
    refuse_norm(given)
    return given


def _pending(loader: PrivateLoader) -> int | None:
    """Records of the batch that still awaits its step."""
    batch = loader.pending
    return None if batch is None else batch.records


def _own_keys(keys: Sequence[Sequence[Sequence[Any]]]) -> Iterator[tuple[str, str]]:
    """Fingerprint and name of every worker's keys; one that a seed gives to several workers once."""
    seeded = set()
    for fingerprint, name, secret in chain.from_iterable(keys):
        if not secret and fingerprint in seeded:
            continue
        seeded.add(fingerprint)
        yield fingerprint, name


def _empty_gradient(step: StepRelease) -> Tensor:
    """What a released gradient looks like."""
    parameters = list(step.contributions.parameters.values())
    return parameters[0].new_empty(sum(p.numel() for p in parameters))
