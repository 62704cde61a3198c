"""`optical-dfa calibrate`: measure a camera, and say what its noise is worth."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from noise_models.errors import DeviceError, UsageError
from optical_dfa.cli.output import JsonOption, notes_to_stderr, print_facts, print_json, print_table, show
from optical_dfa.cli.train import parse_options
from privacy.releases import terms

if TYPE_CHECKING:
    from noise_models.calibration.document import Calibration, Interval
    from optical_dfa.backends.base import ProjectionBackend

# What a network's error looks like by default; a camera's calibration does not depend on it.
_IN_FEATURES, _OUT_FEATURES = 10, 1024
_HEALTH_FRAMES = 16  # that a release would take, after the start-up


def calibrate(
    backend: Annotated[str, typer.Option(help="Projection device; see `optical-dfa backends`.")],
    backend_option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Repeatable.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Calibration to write (JSON), its picture beside it."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Picture to write (PNG); default: beside --out.")
    ] = None,
    frames: Annotated[
        int | None,
        typer.Option(
            help="Dark frames, 1536 if not given; about 200 others are taken besides. With --photon: frames of each of "
            "some 30 parts, 16384 if not given."
        ),
    ] = None,
    photon: Annotated[
        bool,
        typer.Option(
            "--photon",
            help="Measure the light path instead, for release photon: from public patterns, no dark frames.",
        ),
    ] = False,
    confidence: Annotated[
        float | None,
        typer.Option(help="Probability with which all limits of a camera hold together, 0.99 if not given."),
    ] = None,
    beta: Annotated[
        float,
        typer.Option(
            help="Probability that the credit, or a limit of --photon, is wrong; is added to delta."
        ),
    ] = 1e-6,
    valid_days: Annotated[float, typer.Option(help="Days that the calibration holds.")] = 30.0,
    ideal_converter: Annotated[
        bool,
        typer.Option(
            "--ideal-converter",
            help="Vouch that the camera's converter is ideal and hands out raw codes; no test shows it.",
        ),
    ] = False,
    matrix: Annotated[
        bool, typer.Option("--matrix", help="Keep the projection's matrix too (.npz).")
    ] = False,
    in_features: Annotated[
        int, typer.Option(help="Inputs of the projection whose gains are measured.")
    ] = _IN_FEATURES,
    out_features: Annotated[int, typer.Option(help="Outputs of that projection.")] = _OUT_FEATURES,
    seed: Annotated[int, typer.Option(help="Seed of the feedback matrix; never of noise.")] = 0,
    health: Annotated[
        bool, typer.Option("--health", help="Run the health tests of a private run instead, once.")
    ] = False,
    calibration: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With --health: what healthy frames are compared with."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a camera by photon transfer: gain, noise, saturation, linearity, and the credit of its dark frames.

    Limits hold together at --confidence. Exit code 1 when a check failed (no credit), or a health test did.

    With --photon, of a light path that carries whole numbers: limits of what a record moves its photo-electrons by.

    Example: optical-dfa calibrate --backend simulated-opu --backend-option fidelity=physics --out cal.json
    """
    if health:
        _refuse(
            "health", out=out, plot=plot, matrix=matrix or None, ideal_converter=ideal_converter or None,
        )  # fmt: skip
        if photon:
            raise UsageError(
                "--health tests dark frames and --photon measures the light; give one of the two"
            )
    elif calibration is not None:
        raise UsageError(
            f"--calibration {calibration} is compared with by --health; add --health, or drop it"
        )
    elif matrix and out is None:
        raise UsageError("--matrix keeps the matrix beside the calibration; name that with --out FILE")
    if photon:
        _refuse("photon", plot=plot, ideal_converter=ideal_converter or None, confidence=confidence)
    for flag, count, most in (
        ("--in-features", in_features, 2**24),
        ("--out-features", out_features, 2**24),
        ("--frames", frames, 10**9),
    ):
        if count is not None and not 1 <= count <= most:
            raise UsageError(f"{flag} is {count}; it must be a whole number from 1 to {most:,}")
    if not 0 <= seed < 2**63:
        raise UsageError(f"--seed is {seed}; it must be a whole number from 0 to 2^63 - 1")
    if matrix and out is not None and out.suffix == ".npz":
        raise UsageError(f"--out is {out}, where --matrix keeps the matrix; name another, such as light.json")
    for flag, path in (("--out", out), ("--plot", plot)):
        if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
            raise UsageError(f"{flag} is {path}; name a file in a folder that exists")
    with notes_to_stderr(as_json):
        device = _device(backend, backend_option, in_features, out_features, seed, photon)
    with device:
        if health:
            _health(device, calibration, as_json)
            return
        if photon:
            _photon(device, frames, beta, valid_days, out, matrix, as_json)
            return
        started = time.perf_counter()
        with notes_to_stderr(as_json):
            confidence = 0.99 if confidence is None else confidence
            result = _measure(
                device, 1536 if frames is None else frames, confidence, beta, valid_days, ideal_converter
            )
            projection = _projection(device, out, matrix, confidence)
        seconds = time.perf_counter() - started
    files = _write(result, out, plot)
    if as_json:
        print_json(_document(result, projection, files, seconds))
    else:
        _show(result, projection, files, seconds)
    if not result.passed:
        raise typer.Exit(1)


def _refuse(mode: str, **given: object) -> None:
    for name, value in given.items():
        if value is not None:
            raise UsageError(
                f"--{name.replace('_', '-')} belongs to a camera's calibration, and --{mode} takes none; drop one of "
                "them"
            )


def _device(
    name: str, options: list[str] | None, in_features: int, out_features: int, seed: int, photon: bool
) -> ProjectionBackend:
    from noise_models.randomness.generator import NoiseGenerator, derive_seed
    from optical_dfa.backends import create

    chosen = parse_options("--backend-option", options) or {}
    if photon:
        card = terms("photon")
        if name == card.backend:
            chosen = dict(card.backend_options) | chosen
    return create(
        name,
        in_features=in_features,
        out_features=out_features,
        seed=derive_seed(seed, "feedback"),  # as a training run of that seed has it
        noise=NoiseGenerator.secure("device"),
        options=chosen,
    )


def _measure(
    device: ProjectionBackend,
    frames: int,
    confidence: float,
    beta: float,
    valid_days: float,
    ideal_converter: bool,
) -> Calibration:
    from noise_models.calibration import photon_transfer
    from optical_dfa.progress import progress_for

    progress = progress_for(sys.stderr, "calibrating")
    total = photon_transfer.planned(max(1, device.dark_pixels), frames)
    begun = False

    def tell(taken: int, what: str) -> None:
        nonlocal begun
        if not begun:
            progress.start(total)
            begun = True
        progress.update(min(taken, total), {"now": what})

    try:
        return photon_transfer.calibrate(
            device,
            dark_frames=frames,
            confidence=confidence,
            beta=beta,
            valid_days=valid_days,
            ideal_converter=ideal_converter,
            tell=tell,
        )
    finally:
        progress.finish()


def _photon(
    device: ProjectionBackend,
    frames: int | None,
    beta: float,
    valid_days: float,
    out: Path | None,
    matrix: bool,
    as_json: bool,
) -> None:
    """Measure the light path; the document, and what it says."""
    import numpy as np

    from noise_models.calibration import light
    from noise_models.calibration.probed_light import ProbedLight
    from optical_dfa.progress import progress_for

    progress = progress_for(sys.stderr, "calibrating")
    count = light.FRAMES if frames is None else frames
    path = cast(ProbedLight, device.photon_readout())
    if not hasattr(path, "probe"):
        raise UsageError(
            f"backend {device.name} shows no public patterns of mirrors; it needs `probe` "
            "(noise_models.calibration.probed_light)"
        )
    responses: list[Any] = []
    total, begun, shown = light.planned(path, count), time.perf_counter(), False

    def tell(taken: int, what: str) -> None:
        nonlocal shown
        if not shown:
            progress.start(total)
            shown = True
        progress.update(min(taken, total), {"now": what})

    try:
        with notes_to_stderr(as_json):
            result = light.calibrate_light(
                path, frames=count, beta=beta, valid_days=valid_days, tell=tell, keep=responses.append
            )
    finally:
        progress.finish()
    if out is not None:
        result.save(out)
    files = {} if out is None else {"calibration": str(out)}
    if out is not None and matrix:
        files["matrix"] = str(out.with_suffix(".npz"))
        np.savez(files["matrix"], response=responses[0])
    seconds = time.perf_counter() - begun
    if as_json:
        print_json(
            {**result.to_dict(), "digest": result.digest, "files": files, "seconds": round(seconds, 3)}
        )
        return
    _show_limits(result.parameters, f"limits, together except with probability {result.beta:g}")
    print()
    print_facts(
        {
            "light path": f"{result.device} {result.device_fingerprint}",
            "frames": f"{result.frames:,} in {seconds:.1f} s",
            "attenuator": f"known from {result.attenuator[0][0]:.3g} to {result.attenuator[-1][0]:.3g}, κ at most "
            f"{max(factor for _, factor in result.attenuator):.3g} of its setting",
            "norm": f"at most {result.norm:.4g} √photo-electrons a unit of light",
            "reference": f"at least {result.least:.4g} √photo-electrons",
            **{name.replace("_", " "): f"at most {value:.3g}" for name, value in result.upper_limits.items()},
        }
    )
    print(f"\nit holds until {result.expires_at}")
    print("\n".join(f"assumes: {text}" for text in result.assumptions))
    for name, file in files.items():
        print(f"{name}: {file}")


def _show_limits(parameters: Mapping[str, Interval], title: str) -> None:
    rows = [
        (name.replace("_", " "), f"{one.value:.5g}", f"{one.lower:.5g} … {one.upper:.5g}")
        for name, one in parameters.items()
    ]
    print_table(("quantity", "value", title), rows)


def _projection(
    device: ProjectionBackend, out: Path | None, keep_matrix: bool, confidence: float
) -> dict[str, Any]:
    """Gain and offset of each output: their summary for the screen, themselves in a file beside the calibration."""
    import numpy as np

    from noise_models.calibration.projection_gain import measure_projection

    found = measure_projection(device, confidence=confidence)
    summary: dict[str, Any] = {
        "in_features": device.in_features,
        "out_features": device.out_features,
        "fingerprint": device.fingerprint(),
        "probes": found.probes,
        "gain_mean": float(found.gain.mean()),
        "gain_std": float(found.gain.std()),
        "offset_largest": float(np.abs(found.offset).max()),
        "offset_standard_error": float(found.offset_error.mean()),
        "noise_std": float(np.sqrt(np.square(found.noise).mean())),
    }
    if keep_matrix:
        summary |= {
            "matrix_relative_error": found.relative_error,
            "matrix_relative_error_upper": found.relative_error_upper,
            "matrix_confidence": found.confidence,
        }
    if out is not None:
        arrays: dict[str, Any] = {"gain": found.gain, "offset": found.offset, "noise": found.noise}
        if keep_matrix:
            arrays["matrix"] = found.matrix
        path = out.with_suffix(".npz")
        np.savez(path, **arrays)
        summary["file"] = str(path)
    return summary


def _write(result: Calibration, out: Path | None, plot: Path | None) -> dict[str, str]:
    files: dict[str, str] = {}
    if out is not None:
        result.save(out)
        files["calibration"] = str(out)
    picture = plot or (out.with_suffix(".png") if out is not None else None)
    if picture is not None:
        from optical_dfa.report.photon_transfer import draw_calibration_picture

        draw_calibration_picture(result, picture)
        files["plot"] = str(picture)
    return files


def _document(
    result: Calibration, projection: Mapping[str, Any], files: Mapping[str, str], seconds: float
) -> dict[str, Any]:
    document = result.to_dict()
    del document["curves"], document["format"]
    limits = document.pop("parameters")
    headline = ("gain_dn_per_electron", "read_noise_electrons")
    return {
        **{name: limits[name]["value"] if name in limits else None for name in headline},
        **document,
        "digest": result.digest,
        "parameters": limits,
        "projection": dict(projection),
        "files": dict(files),
        "seconds": round(seconds, 3),
    }


def _show(
    result: Calibration, projection: Mapping[str, Any], files: Mapping[str, str], seconds: float
) -> None:
    _show_limits(result.parameters, f"limits, {100 * result.confidence:g} % together")
    facts = {
        "camera": f"{result.camera} {result.camera_fingerprint}",
        "frames": f"{result.frames:,} in {seconds:.1f} s",
        "credit": f"{result.credit_lower_dn:.4g} DN of {result.credit_dn:.4g} DN, except with probability "
        f"{result.beta:g}",
        "outputs": f"gain {projection['gain_mean']:.4g} ± {projection['gain_std']:.2g} over outputs, offset up to "
        f"{projection['offset_largest']:.2g}",
    }
    if "matrix_relative_error" in projection:
        facts["matrix"] = (
            f"relative error {projection['matrix_relative_error']:.3g}, at most "
            f"{projection['matrix_relative_error_upper']:.3g}"
        )
    print()
    print_facts(facts)
    verdict = f"passed; it holds until {result.expires_at}" if result.passed else "NOT passed: no credit"
    print(f"\nverdict: {verdict}")
    print("\n".join(f"finding: {text}" for text in result.findings or ("none",)))
    print("\n".join(f"assumes: {text}" for text in result.assumptions))
    for name, path in (*files.items(), *((("outputs", projection["file"]),) if "file" in projection else ())):
        print(f"{name}: {path}")


def _health(device: ProjectionBackend, path: Path | None, as_json: bool) -> None:
    """The start-up test of a private run, a few frames as a release takes them, and the last look."""

    from noise_models.base import Frame
    from noise_models.calibration.document import Calibration
    from noise_models.errors import HealthError
    from privacy.releases.device_health import DeviceHealth

    known = None if path is None else Calibration.load(path)
    credit = device.noise.credit(Frame.DARK) if known is None else known.credit()
    if device.dark_pixels < 1:
        device.dark(1)  # says what to use instead
    if credit.std <= 0:
        raise DeviceError(
            f"there is no noise to compare with: {credit.argument}; calibrate, and give --calibration FILE"
        )
    tests = DeviceHealth(device, known)
    report: dict[str, Any] = {"camera": device.name, "camera_fingerprint": device.camera_fingerprint()}
    try:
        with notes_to_stderr(as_json):
            _, found = tests.start_up()
            for _ in range(_HEALTH_FRAMES):
                tests.take()
            tests.vouch()
    except HealthError as error:
        if not as_json:
            raise
        print(f"error: {error}", file=sys.stderr)
        print_json(
            {**report, "healthy": False, "finding": error.finding, "error": str(error), "exit_code": 1}
        )
        raise typer.Exit(1) from None
    report |= {"healthy": True, "found": found, "tests": tests.describe()}
    if as_json:
        print_json(report)
        return
    print_facts({name.replace("_", " "): show(value) for name, value in found.items() if name != "digests"})
    print(f"\nhealthy: {device.name} passed the start-up test and {_HEALTH_FRAMES} further frames")
