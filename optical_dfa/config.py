"""The settings of a training run: validated, read from TOML, overridden by flags, resolved to numbers.

Three steps, each in one place: `merge` (file, then flags) builds a validated `TrainConfig`, in which None
means "the shipped default"; `resolve` replaces every such None once the data set's size is known; `write`
stores the result, so that a run folder says exactly what was run. Importing this module does not import
torch.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator, model_validator

from noise_models.drafts import replacing
from noise_models.errors import UsageError
from optical_dfa.backends import BACKENDS, has_dark_frames
from optical_dfa.data import DATASETS, registered
from optical_dfa.data.defaults import ADAM_LR, for_records, rate_for_records
from optical_dfa.data.features import card_of
from optical_dfa.feedback import RULES
from optical_dfa.settings import PATHS, SETTINGS, Settings
from privacy.notions import Adjacency
from privacy.releases import RELEASES, refuse_unknown_options, terms


class TrainConfig(Settings, BaseModel):
    """What a user asked for: the `Settings`, validated.

    Of rule, backend and release those that were not given follow the others: dfa on simulated-opu under dark-frame,
    but digital where there is no device or no camera, and what a release or a rule cannot do without.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @property
    def private(self) -> bool:
        """Whether a private release was asked for."""
        return self.release != "none"

    @model_validator(mode="before")
    @classmethod
    def _follow(cls, values: Any) -> Any:
        """Rule, backend and release that were not given, from those that were."""
        if not isinstance(values, Mapping):
            return values
        given = dict(values)
        asked = RELEASES.get(given.get("release", "none"))
        if asked is not None and asked.rule is not None:
            given.setdefault("rule", asked.rule)
        rule = given.get("rule", "dfa")
        card = RULES.get(rule)
        if card is not None and card.own_law:
            given.setdefault("backend", "digital")
        if asked is not None and asked.backend is not None:
            given.setdefault("backend", asked.backend)
            if given["backend"] == asked.backend and isinstance(given.get("backend_options", {}), Mapping):
                given["backend_options"] = dict(asked.backend_options) | dict(
                    given.get("backend_options", {})
                )
        backend, options = given.get("backend", "simulated-opu"), given.get("backend_options", {})
        no_frames = card is not None and not card.projects
        if backend in BACKENDS and isinstance(options, Mapping):
            no_frames |= not has_dark_frames(backend, options)
        if no_frames and given.get("calibration") is None:
            given.setdefault("release", "digital")
        return given

    @field_validator(*PATHS, mode="before")
    @classmethod
    def _path(cls, value: Any) -> Any:
        return Path(value) if isinstance(value, str) else value

    @field_validator("dataset")
    @classmethod
    def _known_dataset(cls, value: str) -> str:
        try:
            registered(value)
        except UsageError as error:
            raise ValueError(str(error)) from None
        return value

    @field_validator(*(name for name, setting in SETTINGS.items() if setting.names))
    @classmethod
    def _known(cls, value: str | None, info: ValidationInfo) -> str | None:
        names = SETTINGS[str(info.field_name)].names
        if value is None or value in names:
            return value
        raise ValueError(f"{info.field_name} is {value!r}; it must be one of {', '.join(names)}")

    @field_validator("features")
    @classmethod
    def _known_features(cls, value: str | None) -> str | None:
        if value is not None:
            card_of(value)
        return value

    @field_validator("device")
    @classmethod
    def _known_device(cls, value: str) -> str:
        if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", value):
            raise ValueError(f"device is {value!r}; it must be cpu, cuda, cuda:N or mps")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.epsilon is not None and self.noise_multiplier is not None:
            raise ValueError(
                f"epsilon is {self.epsilon} and noise_multiplier is {self.noise_multiplier}; "
                "give one of the two: the other follows from it"
            )
        if RULES[self.rule].recurrent and not DATASETS[registered(self.dataset)].text:
            raise ValueError(
                f"rule is {self.rule!r}, which teaches recurrent layers, but dataset {self.dataset} is no text; add "
                "dataset tiny-shakespeare, or a path ending in .txt"
            )
        if not self.private:
            for name in (
                "epsilon", "noise_multiplier", "delta", "max_grad_norm", "public_size", "release_options",
            ):  # fmt: skip
                if (value := getattr(self, name)) is not None:
                    raise ValueError(
                        f"{name} is {value} but release is none, which has no privacy; "
                        f"drop {name} or choose a release among {', '.join(RELEASES)}"
                    )
        elif self.max_grad_norm is not None and not RELEASES[self.release].clips:
            raise ValueError(
                f"max_grad_norm is {self.max_grad_norm} but release {self.release} does not clip; drop max_grad_norm"
            )
        if self.private and self.transfer is not None:
            raise ValueError(
                f"transfer is {str(self.transfer)!r} but release is {self.release}: what those layers learned from is "
                "not covered by it; drop transfer, or use release none"
            )
        if self.private and self.diagnose and not self.unsafe_diagnostics:
            raise ValueError(
                f"diagnose is true, which shows figures of private records that release {self.release} does not cover; "
                "add unsafe_diagnostics, which voids the guarantee, or drop diagnose"
            )
        if self.private:
            refuse_unknown_options(self.release, self.release_options or {})
            if (
                self.features is not None
                and not card_of(self.features).of_one_record
                and terms(self.release).adjacency is not Adjacency.LABEL
            ):
                raise ValueError(
                    f"features is {self.features!r}, computed from training inputs that release {self.release} keeps "
                    "private; drop features, or use release label, whose inputs are public"
                )
        if self.calibration is not None and (not self.private or RELEASES[self.release].calibration is None):
            raise ValueError(
                f"calibration is {str(self.calibration)!r} but release is {self.release}, which credits none of the "
                "device's noise; drop calibration or use release dark-frame or photon"
            )
        if self.parallel == "layers" and self.private:
            raise ValueError(
                f"parallel is 'layers' but release is {self.release}: a record's update is clipped over all layers, "
                "which no worker has; leave parallel out, and torchrun shares the records out, or add --release none"
            )
        if self.parallel == "layers" and self.diagnose:
            raise ValueError(
                "diagnose is true, which compares with backpropagation through all layers, but parallel is 'layers'; "
                "drop one of the two"
            )
        if self.micro_batches is not None and self.parallel != "layers":
            raise ValueError(
                f"micro_batches is {self.micro_batches}, which is of parallel = 'layers' alone; add --parallel layers, "
                "or drop micro_batches"
            )
        if self.optimizer == "adam" and self.momentum is not None:
            raise ValueError(
                f"momentum is {self.momentum} but optimizer is adam, which has its own; "
                "drop momentum or use optimizer sgd"
            )
        return self


class ResolvedConfig(TrainConfig):
    """A `TrainConfig` in which every number is there; what is None has no meaning for this run.

    In a private run `delta`, `max_grad_norm` (where the release clips), `public_size` and exactly one of `epsilon`,
    `noise_multiplier` are set.
    """

    if TYPE_CHECKING:  # at run time they are the `Settings`, which `resolve` has filled in
        batch_size: int
        epochs: int
        lr: float


def merge(file_values: Mapping[str, Any], flags: Mapping[str, Any]) -> TrainConfig:
    """A validated configuration from a file's values and the command line's, which win.

    A flag that is None was not given. The option tables are merged entry by entry; a flag for one of
    `epsilon`, `noise_multiplier` replaces the file's choice between the two.

    Raises:
        UsageError: one line: which setting, its value, what is allowed.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    values = dict(file_values)
    for name, other in (("epsilon", "noise_multiplier"), ("noise_multiplier", "epsilon")):
        if name in given and other not in given:
            values.pop(other, None)
    for name in ("backend_options", "rule_options", "release_options"):
        if isinstance(values.get(name), Mapping) and isinstance(given.get(name), Mapping):
            given[name] = {**values[name], **given[name]}
    for name, value in (*values.items(), *given.items()):
        if not _utf8(str(value)) or "\0" in str(value):
            raise UsageError(
                f"{name} is {str(value)!r}, which is no UTF-8 text and cannot be written into the run's settings; "
                "rename it, or set a UTF-8 locale"
            )
    try:
        return TrainConfig.model_validate({**values, **given})
    except ValidationError as error:
        raise UsageError(one_line(error)) from None


def resolve(config: TrainConfig, train_size: int, model: str | None = None) -> ResolvedConfig:
    """Every default filled in, and checked against the number of training records.

    Args:
        config: what was asked for; a resolved one comes back unchanged.
        train_size: number of training records. It becomes `public_size` where none was declared.
        model: the network for this kind of data, where none was asked for; None: the usual one.
    Raises:
        UsageError: delta is not below 1/N, or a batch is larger than the data set.
    """
    if train_size < 1:
        raise UsageError(f"the data set has {train_size} training records; at least 1 is needed")
    size = config.public_size if config.public_size is not None else train_size
    card = DATASETS[registered(config.dataset)]
    shipped = card.shipped(config.private)
    by_records = config.private and card.by_records
    if by_records:
        shipped = for_records(size, clips=RELEASES[config.release].clips)
    values: dict[str, Any] = config.model_dump()

    def default(key: str, value: Any) -> None:
        if values[key] is None:
            values[key] = value

    if model is not None and "model" not in config.model_fields_set:
        values["model"] = model
    default("batch_size", min(shipped.batch_size, size))
    default("epochs", shipped.epochs)
    if config.optimizer == "sgd":
        default("momentum", shipped.momentum)
    if config.private:
        default("public_size", size)
        default("delta", shipped.delta if shipped.delta is not None else min(1e-5, 0.1 / size))
        if RELEASES[config.release].clips:
            default("max_grad_norm", shipped.max_grad_norm)
        if config.noise_multiplier is None:
            default("epsilon", shipped.epsilon)
    if config.optimizer == "adam":
        default("lr", ADAM_LR)
    elif by_records:
        names = ("batch_size", "epochs", "momentum", "max_grad_norm", "epsilon", "noise_multiplier")
        default("lr", rate_for_records(size, **{name: values[name] for name in names}))
    else:
        default("lr", shipped.lr)
    for name in PATHS:
        if values[name] is not None:
            values[name] = values[name].expanduser().resolve()
    if config.dataset not in DATASETS:
        values["dataset"] = str(Path(values["dataset"]).expanduser().resolve())

    if values["batch_size"] > size:
        raise UsageError(
            f"batch_size is {values['batch_size']}; it must be at most the {size} training records: lower it"
        )
    if config.private and values["delta"] >= 1 / size:
        raise UsageError(
            f"delta is {values['delta']}; it must be below 1/N = {1 / size} "
            f"for {size} records, or one record may be published outright: lower it"
        )
    try:
        return ResolvedConfig.model_validate(values)
    except ValidationError as error:
        raise UsageError(one_line(error)) from None


def read(path: Path) -> dict[str, Any]:
    """The settings in a TOML file, not yet validated beyond their names.

    Raises:
        UsageError: the file is absent, unreadable, not TOML, or has a key that is no setting.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"config file {path}: {error.strerror}; give the path of a TOML file") from None
    except UnicodeDecodeError:
        raise UsageError(f"config file {path} is not UTF-8 text; give the path of a TOML file") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"config file {path} is not valid TOML: {reason}; correct that line") from None
    for key in values:
        if key not in SETTINGS:
            raise UsageError(f"config file {path}: {_unknown_key(key)}")
    return values


def write(config: TrainConfig, path: Path) -> None:
    """The configuration as TOML; settings that are None are left out. `read` and `merge` give it back."""
    values = config.model_dump(exclude_none=True)
    for name in PATHS:
        if name in values:
            values[name] = str(values[name])
    with replacing(path) as draft:
        draft.write_text(tomli_w.dumps(values), encoding="utf-8")


def one_line(error: ValidationError) -> str:
    """pydantic's first finding as one line: the setting, its value, what is allowed, where to change it."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    name = str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        return _unknown_key(name)
    value = repr(first["input"])
    shown = value if len(value) <= 60 else value[:57] + "..."
    setting = SETTINGS[name]
    return (
        f"{name} is {shown}; it must be {setting.allowed}: change {setting.flag} or {name} in the config file"
    )


def _utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _unknown_key(key: str) -> str:
    close = difflib.get_close_matches(key.replace("-", "_"), SETTINGS, n=1)
    hint = f"did you mean {close[0]}?" if close else f"settings are {', '.join(SETTINGS)}"
    return f"{key!r} is no setting; {hint}"
