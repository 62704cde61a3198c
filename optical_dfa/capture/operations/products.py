"""Rules of matrix products, and of linear algebra on matrices along the last two axes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from optical_dfa.capture.operations.call import DIFFERS, ELSEWHERE, NO_CONSTANT, OVER, Call, MixingError
from optical_dfa.capture.operations.rules import Placed, Rules, across, free_of_last
from optical_dfa.capture.rows import CONSTANT, Rows

RULES = Rules()


def _product(call: Call, left: Tensor, right: Tensor) -> Rows:
    """Of matrices (..., n, k) and (..., k, m), broadcast over what comes before."""
    a, b = call.rows(left), call.rows(right)
    for rows, summed in ((a, left.ndim - 1), (b, right.ndim - 2)):
        if rows is not None and rows.axis == summed:
            raise MixingError("by a matrix product " + OVER)
    ndim = max(left.ndim, right.ndim)
    outer = [x for x, rows in ((left, a), (right, b)) if rows is not None and rows.axis >= x.ndim - 2]
    if outer:
        if a is not None and b is not None:
            raise MixingError("by a matrix product between records")
        x = outer[0]
        rows = a if x is left else b
        assert rows is not None
        return rows.moved(rows.axis + ndim - x.ndim)
    batched = [x for x in (left, right) if x.ndim > 2]
    return call.together(batched, ndim)


@RULES.of("mm", "bmm", "matmul")
def product(call: Call) -> Placed:
    left, right = call.get("self"), call.get("mat2")
    return _product(call, left, call.get("other") if right is None else right)


@RULES.of("addmm", "baddbmm", "_addmm_activation")
def sum_and_product(call: Call) -> Placed:
    left = call.get("mat1") if call.get("mat1") is not None else call.get("batch1")
    right = call.get("mat2") if call.get("mat2") is not None else call.get("batch2")
    added = call.get("self")
    if call.rows(left) is None and call.rows(right) is None:
        raise MixingError(NO_CONSTANT)
    rows = _product(call, left, right)
    return call.added(rows, added, left.ndim)


@RULES.of("mv")
def matrix_vector(call: Call) -> Placed:
    x, rows = call.only()
    return across(rows, -1, x.ndim)


@RULES.of("addmv")
def sum_and_matrix_vector(call: Call) -> Placed:
    call.constants("vec")
    matrix = call.get("mat")
    rows = call.rows(matrix)
    if rows is None:
        raise MixingError(NO_CONSTANT)
    return call.added(across(rows, -1, 2), call.get("self"), 1)


@RULES.of("linear")
def linear(call: Call) -> Placed:
    x, rows = call.only("input")
    return across(rows, -1, x.ndim)


@RULES.of("_trilinear")
def trilinear(call: Call) -> Placed:
    """Three tensors get axes of size 1 where `expand` says so, are multiplied, and axes are summed."""
    summed, place = list(call.get("sumdim")), None
    ndim = call.get("i1").ndim + len(call.get("expand1"))
    operands = [(call.get(f"i{n}"), sorted(call.get(f"expand{n}"))) for n in (1, 2, 3)]
    own = [[axis for axis in range(ndim) if axis not in made] for _, made in operands]
    for (x, _), axes in zip(operands, own, strict=True):
        rows = call.rows(x)
        if rows is not None:
            moved = rows.moved(axes[rows.axis])
            if place not in (None, moved):
                raise MixingError(ELSEWHERE)
            place = moved
    assert place is not None  # asked for calls with records only
    for (x, _), axes in zip(operands, own, strict=True):
        if call.rows(x) is None and place.axis in axes:
            axis = axes.index(place.axis)
            if x.shape[axis] != 1 and not call.uniform(x, place.moved(axis)):
                raise MixingError(DIFFERS)
    if place.axis in summed:
        raise MixingError(OVER)
    return place.moved(place.axis - sum(axis < place.axis for axis in summed))


@RULES.of("_cdist_forward", "_euclidean_dist")
def cdist(call: Call) -> Placed:
    x, y = call.get("x1"), call.get("x2")
    ndim = max(x.ndim, y.ndim)
    for one, other, axis in ((x, y, ndim - 2), (y, x, ndim - 1)):
        rows = call.rows(one)
        if rows is not None and call.rows(other) is None and rows.axis == one.ndim - 2:
            if call.name == "_cdist_forward" and call.get("p") == 2 and not call.get("compute_mode"):
                raise MixingError("by an algorithm that depends on how many rows there are; call torch.cdist")
            return rows.moved(axis)
    return _batched(call, [x, y])


def _batched(call: Call, matrices: Sequence[Tensor]) -> Rows:
    """Matrices that are broadcast over what comes before."""
    ndim = max(x.ndim for x in matrices)
    rows = call.together(matrices, ndim)
    if rows.axis >= ndim - 2:
        raise MixingError(OVER)
    return rows


@RULES.of("linalg_inv_ex", "linalg_cholesky_ex", "linalg_lu_factor_ex", "linalg_lu", "_linalg_det", "_linalg_slogdet",
          "linalg_qr")  # fmt: skip
def of_matrices(call: Call) -> Placed:
    x, rows = call.only("self" if call.name == "linalg_cholesky_ex" else "A")
    _without_errors(call)
    free_of_last(x, rows, 2)
    return (None, rows) if call.get("mode") == "r" else rows


@RULES.of("_linalg_solve_ex")
def solve(call: Call) -> Placed:
    a, b = call.get("A"), call.get("B")
    _without_errors(call)
    if b.ndim > 1 and b.shape != a.shape[:-1]:
        rows = _systems(call, a, b)
    else:  # a vector for each matrix, or for all
        if b.ndim == 1:
            call.constants("B")
        rows = call.rows(a) or _some(call.rows(b))
        free_of_last(a, rows, 2)
        for x in (a, b) if b.ndim > 1 else ():
            call.added(rows, x, x.ndim)
    return (
        rows,
        *[call.rows(a) or CONSTANT] * 3,
    )  # and what its backward pass reads, made of the matrices alone


@RULES.of("linalg_solve_triangular")
def solve_triangular(call: Call) -> Placed:
    return _systems(call, call.get("self"), call.get("B"))


@RULES.of("cholesky_solve")
def cholesky_solve(call: Call) -> Placed:
    return _systems(call, call.get("input2"), call.get("self"))


def _systems(call: Call, a: Tensor, b: Tensor) -> Rows:
    """Right-hand sides that are matrices; of those with a constant each column (row, to the right) is by itself."""
    rows = call.rows(b)
    free = b.ndim - (1 if call.get("left", True) else 2)
    if rows is not None and call.rows(a) is None and rows.axis == free:
        return rows.moved(rows.axis + max(a.ndim, b.ndim) - b.ndim)
    return _batched(call, [a, b])


def _some(rows: Rows | None) -> Rows:
    if rows is None:
        raise MixingError(NO_CONSTANT)
    return rows


def _without_errors(call: Call) -> None:
    if call.get("check_errors", False):
        raise MixingError("by an error that depends on what they are; leave check_errors out")


@RULES.of("_linalg_check_errors")
def errors(call: Call) -> Placed:
    raise MixingError(
        "by an error that depends on what they are; use torch.linalg.solve_ex, inv_ex, cholesky_ex or lu_factor_ex, "
        "which raise none"
    )


@RULES.of(
    "_linalg_svd",
    "_linalg_eigh",
    "linalg_eig",
    "_linalg_eigvals",
    "linalg_eigvals",
    "linalg_pinv",
    "linalg_lstsq",
)
def decomposition(call: Call) -> Placed:
    raise MixingError(
        "by an error that depends on what they are (nan does not converge); use qr, det, solve_ex or cholesky_ex, "
        "or decompose constants alone"
    )


@RULES.of("linalg_cross")
def cross(call: Call) -> Placed:
    operands = [call.get("self"), call.get("other")]
    return across(call.together(operands, operands[0].ndim), call.get("dim", -1), operands[0].ndim)
