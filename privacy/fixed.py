"""Objects whose attributes nobody changes once a run has begun: what is accounted for is what happens.

An attribute that could be written would either steer the run behind the ledger's back (`loader.sample_rate = 0.15`), or
be ignored (`optimizer.noise_multiplier = 2`). Both are refused, in words.
"""

from __future__ import annotations

from typing import Any, ClassVar, NoReturn

from noise_models.errors import UsageError


class Fixed:
    """Takes attributes until `_fix` is called; from then on only those in `_changing`, which its own methods write.

    Neither pickled nor copied: a second one would release the same batch, or draw the same coins.
    """

    _changing: ClassVar[frozenset[str]] = frozenset()
    _fixed: bool = False

    def _fix(self, changing: frozenset[str] | None = None) -> None:
        """From now on writes are refused.

        Args:
            changing: but those of these attributes; None is `_changing`.
        """
        if changing is not None:
            object.__setattr__(self, "_changing", changing)
        object.__setattr__(self, "_fixed", True)

    def __setattr__(self, name: str, value: Any) -> None:
        if self._fixed and name not in self._changing:
            self._refuse_writing(name)
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if self._fixed and name not in self._changing:
            self._refuse_writing(name)
        super().__delattr__(name)

    def _refuse_writing(self, name: str) -> NoReturn:
        """
        Raises:
            UsageError: always; the attribute is fixed, or there is none.
        """
        known = name in self.__dict__ or hasattr(type(self), name)
        what = f"attribute {name} of the {type(self).__name__}"
        if known:
            raise UsageError(
                f"{what} is fixed once the run is private: the ledger accounts for what make_private was given; make "
                "the module private again, with a new engine, for other settings"
            )
        raise UsageError(f"{what} does not exist, so writing it would have no effect; leave it out")

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        refuse_copying(self)


def refuse_copying(part: object) -> NoReturn:
    """
    Raises:
        UsageError: always; the part belongs to a private run.
    """
    raise UsageError(
        f"the {type(part).__name__} of a private run cannot be copied or saved (two of them would release one batch "
        "twice); keep weights and optimizer state with engine.save_checkpoint(path=, module=, optimizer=), or the "
        "weights alone with state_dict()"
    )
