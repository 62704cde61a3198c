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
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from noise_models.calibration import Calibration
from noise_models.errors import UsageError
from noise_models.generator import NoiseGenerator, derive_seed
from privacy import accounting, health_log
from privacy.guarantee import Guarantee
from privacy.kind import Kind
from privacy.ledger import SETTINGS, Ledger, Release
from privacy.optimizer import PrivateOptimizer
from privacy.plan import Plan, refuse_types
from privacy.protocols import PrivateModule
from privacy.releases import refuse_unknown_options, terms
from privacy.releases.source import NoiseSource, Parts
from privacy.releases.step import StepRelease
from privacy.sampling import PoissonLoader, PrivateLoader, PublicLoader
from privacy.validation import Validation, validate
from privacy.weights import ANNOUNCED

ModuleT = TypeVar("ModuleT", bound=nn.Module)

# Bounds far from any use, within which float32 noise neither overflows nor loses its low bits.
MOST_NOISE = 1e6
LEAST_NORM, MOST_NORM = 1e-12, 1e12


class BudgetExhaustedError(RuntimeError):
    """The next release would pass the target epsilon; nothing was released."""


class PrivacyEngine:
    """Holds the ledger and the accountant of one private run.

    Attributes:
        ledger: the record of every release; None before `make_private`.
        step: the release of a step; None before `make_private`.
        source: where its noise comes from; None before `make_private`.
    """

    def __init__(
        self,
        *,
        ledger: Path | str | None = None,
        resume: bool = False,
        reproducible_seed: int | None = None,
        unsafe_diagnostics: bool = False,
        accountant: str | None = None,
        calibration: Calibration | None = None,
        before_writing: Callable[[], None] | None = None,
        assumptions: Sequence[str] = (),
        settings: Mapping[str, Any] | None = None,
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
                created or continued.
            assumptions: what the caller takes for granted besides; printed with the guarantee.
            settings: of the caller's training (JSON types), for the ledger to hold: an audit compares them. Those of a
                resumed run may be others; a row of its own then says so.
        """
        self.ledger: Ledger | None = None
        self.step: StepRelease | None = None
        self.source: NoiseSource | None = None
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
        Returns:
            (module, optimizer, loader) to use in place of the given ones.
        Raises:
            UsageError: anything that would break the guarantee, before anything is released.
            DeviceError: the device's dark frames are not as credited, or its calibration does not serve; the ledger
                says why.
        """
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
        plan = Plan(data_loader, poisson_sampling, public_size, max_physical_batch_size)
        return self._make(
            module,
            optimizer,
            plan,
            release,
            max_grad_norm,
            lambda step: noise_multiplier,
            target_epsilon,
            target_delta,
            release_options or {},
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
    ) -> tuple[ModuleT, PrivateOptimizer, PrivateLoader]:
        """As `make_private`, with the least noise that keeps `epochs` epochs within the target.

        Raises:
            UsageError: as `make_private`, or a target that no noise reaches.
        """
        refuse_types({"target_epsilon": target_epsilon, "target_delta": target_delta}, {"epochs": epochs})
        if epochs < 1:
            raise UsageError(f"epochs is {epochs}; it must be at least 1")
        plan = Plan(data_loader, poisson_sampling, public_size, max_physical_batch_size)

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
            release_options or {},
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

    def close(self) -> None:
        """Close the ledger."""
        if self.ledger is not None:
            self.ledger.close()

    # ---- how it is put together

    def _make(
        self,
        module: ModuleT,
        optimizer: Optimizer,
        plan: Plan,
        release: str,
        max_grad_norm: float | None,
        noise_multiplier: Callable[[StepRelease], float],
        target_epsilon: float | None,
        target_delta: float | None,
        options: Mapping[str, Any],
    ) -> tuple[ModuleT, PrivateOptimizer, PrivateLoader]:
        """`noise_multiplier` is asked once the cost of one step is known."""
        if self.ledger is not None:
            raise UsageError("this engine already serves a module; take a new PrivacyEngine for another")
        self._terms = terms(release)
        refuse_unknown_options(release, options)
        norm = _clipping_norm(max_grad_norm, release)
        face = _private_face(module)
        _refuse_distributed()
        self._accountant = accounting.accountant_for(self._terms.mechanism, self._accountant)
        resumed = self._resumed()
        with ExitStack() as undo:
            if resumed is not None:
                undo.callback(resumed.close)
            undo.callback(face.stop_capture)
            step = self._release(release, face, plan, norm, resumed, options)
            source, capture = step.source, step.contributions
            coins, masks = self._generator("sampling", resumed), self._generator("masks", resumed)
            self._beta = source.beta
            self._rate = 1.0 if self._terms.public_batches else plan.sample_rate
            sigma = noise_multiplier(step)
            step.check_noise(sigma)
            event = step.event(self._rate, sigma)
            self._refuse_worthless(event, target_delta)
            header = self._header(face, event, step, plan, max_grad_norm, target_epsilon, target_delta)
            epoch = 0 if resumed is None else 1 + max((row.epoch for row in resumed.tally()), default=-1)
            if self._terms.public_batches:
                header["batches_seed"] = self._batches_seed(resumed)
                loader: PrivateLoader = PublicLoader(
                    plan.loader, plan.steps, header["batches_seed"], epoch, plan.max_physical_batch_size
                )
            else:
                loader = PoissonLoader(
                    plan.loader, plan.sample_rate, plan.steps, coins, plan.max_physical_batch_size
                )
            private = PrivateOptimizer(
                optimizer, capture.parameters, module, lambda: self._step(loader, step, sigma)
            )
            undo.callback(private.hand_back)
            ledger = self._open(header, resumed)
            if resumed is None:
                undo.callback(ledger.close)
            for generator in (*source.generators, coins, masks):
                ledger.register_key(generator.fingerprint(), generator.name)
            health_log.start_up(source, ledger)
            if target_epsilon is not None and target_delta is not None:
                allowed = accounting.releases_within(
                    target_epsilon,
                    target_delta,
                    lambda steps: step.planned(self._rate, sigma, steps, epoch=epoch),
                    self._terms.adjacency,
                    self._accountant,
                    spent=ledger.tally(),
                    beta=self._beta,
                )
                self._limit = ledger.count() + allowed
                self._epochs = epoch + math.ceil(allowed / plan.steps)
            undo.pop_all()
        capture.expected_records = lambda: _pending(loader)
        capture.mask_seed = lambda: int(masks.uint64(1)[0])
        self.ledger, self.step, self.source = ledger, step, source
        return module, private, loader

    def _step(self, loader: PrivateLoader, step: StepRelease, noise_multiplier: float) -> Tensor | None:
        """One `optimizer.step()`: take the batch in; if it completes the step, write the ledger and release."""
        batch, ledger = loader.current, self.ledger
        if self._failed:
            raise UsageError(
                "an earlier step failed half-way, so no further one is released; resume from the ledger"
            )
        if batch is None or batch.stepped or ledger is None:
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
                "no backward pass has reached this batch; never leave one out (a record that is not finite already "
                "contributes zero)"
            )
        try:
            step.absorb(first=batch.first)
            batch.stepped = True
            if not batch.final:
                return None
            with health_log.noting_failures(ledger, "step"):
                step.add_noise(noise_multiplier)
                step.source.vouch()
            health_log.register_new_keys(step.source, ledger)
            event = step.event(self._rate, noise_multiplier, batch.epoch)
            ledger.append_release(event)  # on disk before anything is released
            return step.release()
        except BaseException:
            self._failed = True
            step.discard()
            raise

    def _refuse_worthless(self, event: Release, delta: float | None) -> None:
        """A release after which no epsilon can be stated is not made."""
        if delta is None:
            return
        notion = self._terms.adjacency
        if math.isinf(accounting.epsilon({event: 1}, delta, notion, self._accountant, beta=self._beta)):
            raise UsageError(
                f"one release with noise multiplier {event.noise_multiplier:g} has no finite epsilon at delta "
                f"{delta:g} (its noise is exact up to a mass of {event.mass:.2g}); raise one of the two"
            )

    def _generator(self, name: str, resumed: Ledger | None) -> NoiseGenerator:
        """A secret generator, or a seeded one that no earlier part of this run has used."""
        if self._seed is None:
            return NoiseGenerator.secure(name)
        part = 0 if resumed is None else resumed.count()
        return NoiseGenerator.seeded(self._seed, f"{name} from release {part}")

    def _release(
        self,
        release: str,
        face: PrivateModule,
        plan: Plan,
        max_grad_norm: float,
        resumed: Ledger | None,
        options: Mapping[str, Any],
    ) -> StepRelease:
        parts = Parts(
            device=face.backend,
            generator=lambda name: self._generator(name, resumed),
            start_capture=face.start_capture,
            max_grad_norm=max_grad_norm,
            expected_batch_size=plan.expected_batch_size,
            max_physical_batch_size=plan.max_physical_batch_size,
            steps_an_epoch=plan.steps,
            calibration=self._calibration,
            known=() if resumed is None else health_log.known_digests(resumed),
            resumed=None if resumed is None else resumed.header().get("credit"),
            options=options,
        )
        made: StepRelease = import_module(f"privacy.releases.{release.replace('-', '_')}").make(parts)
        if self._calibration is not None and made.source.calibration is None:
            raise UsageError(
                f"a calibration was given, but release {release} credits none of the device's noise; drop it, or use "
                "release dark-frame"
            )
        return made

    def _batches_seed(self, resumed: Ledger | None) -> int:
        """Public: in the ledger."""
        if resumed is not None:
            return int(resumed.header().get("batches_seed", 0))  # a run without one is refused by its release
        return secrets.randbits(63) if self._seed is None else derive_seed(self._seed, "public batches")

    def _resumed(self) -> Ledger | None:
        if not self._resume:
            return None
        if self._path is None:
            raise UsageError("there is no ledger to resume; give its path")
        return Ledger.open(self._path)

    def _header(
        self,
        module: PrivateModule,
        event: Release,
        step: StepRelease,
        plan: Plan,
        max_grad_norm: float | None,
        target_epsilon: float | None,
        target_delta: float | None,
    ) -> dict[str, Any]:
        """Everything the audit needs; equal for every part of a run."""
        source = step.source
        secret = self._seed is None and all(generator.secret for generator in source.generators)
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
            "credit": source.describe(),
            "assumptions": [*source.assumptions, *self._assumptions, *step.assumptions],
            "module": module.describe(),
            "version": version("optical-dfa"),
        }

    def _open(self, header: dict[str, Any], resumed: Ledger | None) -> Ledger:
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
            self._before_writing()
        if resumed is not None and self._settings is not None:
            resumed.append_settings(self._settings)
        if self._settings is not None:
            header[SETTINGS] = self._settings
        # A ledger of before weights were named goes on without: it is the beginning that announces them.
        return Ledger.create(self._path, {**header, ANNOUNCED: True}) if resumed is None else resumed


def _private_face(module: nn.Module) -> PrivateModule:
    """The module as one that can be made private."""
    if isinstance(module, PrivateModule) and not hasattr(module, "_orig_mod"):
        return cast(PrivateModule, module)
    raise UsageError(
        f"module is a {type(module).__name__}; give the aligned module itself: optical_dfa.align(module, "
        'rule="dfa"), or rule="bp" for backpropagation (compiled and parallel wrappers are not supported)'
    )


def _clipping_norm(given: float | None, release: str) -> float:
    """C; 1 where the release does not clip."""
    if not terms(release).clips:
        if given is not None:
            raise UsageError(f"max_grad_norm is {given}, but release {release} does not clip; leave it out")
        return 1.0
    refuse_types({"max_grad_norm": given}, {})
    if given is None or not LEAST_NORM <= given <= MOST_NORM:
        raise UsageError(
            f"max_grad_norm is {given}; it must be a number from {LEAST_NORM:g} to {MOST_NORM:g}"
        )
    return given


def _pending(loader: PrivateLoader) -> int | None:
    """Records of the batch that still awaits its step."""
    batch = loader.current
    return None if batch is None or batch.stepped else batch.records


def _refuse_distributed() -> None:
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        raise UsageError(
            f"private training on {distributed.get_world_size()} processes is not supported (a worker's empty batch "
            "would lose noise); train in one process"
        )
