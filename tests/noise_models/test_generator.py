"""The cryptographic generator: known answers, laws, independence, and keys that are never copied.

Statistical tests have fixed seeds; each states the probability with which a sound generator would fail it
under a seed chosen at random.
"""

from __future__ import annotations

import copy
import hashlib
import multiprocessing
import os
import pickle
import threading
from typing import Any

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from noise_models.errors import UsageError
from noise_models.randomness.generator import BLOCK, NORMAL_TAIL_MASS, NoiseGenerator, derive_seed


def normals(seed: int, n: int, dtype: torch.dtype = torch.float32, name: str = "test") -> torch.Tensor:
    return NoiseGenerator.seeded(seed, name).normal_(torch.empty(n, dtype=dtype))


def test_stream_is_aes_256_in_counter_mode() -> None:
    # NIST SP 800-38A, F.5.5: key, initial counter and keystream (plaintext xor ciphertext of block 1).
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    counter = int("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff", 16)
    plain = bytes.fromhex("6bc1bee22e409f96e93d7e117393172a")
    cipher = bytes.fromhex("601ec313775789a5b7a7f504bbf3d228")
    generator = NoiseGenerator(key, "vector", 0)
    generator._seek(16 * counter)
    expected = bytes(a ^ b for a, b in zip(plain, cipher, strict=True))
    assert generator.uint64(2).tobytes() == expected


def test_words_are_filled_with_the_same_stream_and_nothing_else_is_touched() -> None:
    words = np.full(12, 7, dtype=np.uint64)
    generator = NoiseGenerator.seeded(3, "fill")
    generator.fill(words, 9)
    generator.fill(words[9:], 0)
    assert generator.position == 72
    assert (words[:9] == NoiseGenerator.seeded(3, "fill").uint64(9)).all()
    assert words[-1] == 7
    for wrong, n in ((words, 11), (words, -1), (words[::2], 2), (np.empty(BLOCK + 9, np.uint64), BLOCK + 1)):
        with pytest.raises(UsageError, match=f"{n} of {len(wrong)} words are to be filled"):
            generator.fill(wrong, n)


def test_seeded_key_is_a_digest_of_seed_and_name() -> None:
    def part(text: bytes) -> bytes:
        return len(text).to_bytes(8, "big") + text

    key = hashlib.sha256(b"optical-dfa/seeded-key" + part(b"-7") + part(b"weights")).digest()
    by_hand = NoiseGenerator(key, "weights", -7)
    assert (by_hand.uint64(9) == NoiseGenerator.seeded(-7, "weights").uint64(9)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normals_follow_the_box_muller_formula(dtype: torch.dtype) -> None:
    # The reference works in float64 from the same bits, with numpy's own trigonometry.
    pairs = 1000
    bits = NoiseGenerator.seeded(3, "test")
    words = bits.uint64(pairs)
    turns = bits.uint64(pairs // 2).view(np.int32)
    radius = np.sqrt(-2 * np.log(((words >> 1).astype(np.float64) + 0.5) / 2.0**63))
    angle = turns * (np.pi / 2**31)
    expected = np.concatenate((radius * np.cos(angle), radius * np.sin(angle)))
    tolerance = 2e-6 if dtype == torch.float32 else 1e-12
    np.testing.assert_allclose(normals(3, 2 * pairs, dtype).numpy(), expected, atol=tolerance)


def test_normal_law() -> None:
    # Kolmogorov-Smirnov on 10^6 draws, false alarm 1e-6; and the first six moments at 5 sigma (2e-6 in all).
    x = normals(11, 1_000_000).double().numpy()
    assert stats.kstest(x, "norm").pvalue > 1e-6
    n = len(x)
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (5, 0, 945), (6, 15, 10170)):
        assert abs((x**power).mean() - mean) < 5 * np.sqrt(variance / n), power


def test_normals_within_and_across_pairs_are_uncorrelated() -> None:
    # 4 correlations and 4 of squares at 5 sigma: false alarm 5e-6.
    x = normals(12, 2 * BLOCK * 16).double().view(-1, 2, BLOCK // 2)
    cosine, sine = x[:, 0].flatten(), x[:, 1].flatten()
    n = len(cosine)
    shifted = (cosine[1:], sine[1:])
    pairs = ((cosine, sine), (cosine[:-1], shifted[0]), (sine[:-1], shifted[1]), (cosine[:-1], shifted[1]))
    for a, b in pairs:
        assert abs(float((a * b).mean())) < 5 / np.sqrt(n)
        assert abs(float(((a**2 - 1) * (b**2 - 1)).mean())) < 5 * 2 / np.sqrt(n)


def test_tails() -> None:
    # Counts beyond t against the binomial law, both sides: false alarm 6e-6.
    n = 4_000_000
    x = normals(13, n)
    for t in (3.0, 4.0, 4.5):
        p = float(stats.norm.sf(t))
        for count in (int((x > t).sum()), int((x < -t).sum())):
            assert stats.binomtest(count, n, p).pvalue > 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_bits_give_finite_normals(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    # All-zero bits are the far end of the tail (9.42 sigma), all-one bits the centre.
    for fill, largest in ((0, np.sqrt(-2 * np.log(2.0**-64))), (255, 0.0)):
        generator = NoiseGenerator.seeded(1, "extreme")

        def constant(buffer: Any, count: int, fill: int = fill) -> None:
            buffer.view(np.uint8)[: count * buffer.itemsize] = fill

        monkeypatch.setattr(generator, "_fill", constant)
        x = generator.normal_(torch.empty(4, dtype=dtype))
        assert torch.isfinite(x).all()
        assert float(x.abs().max()) == pytest.approx(largest, rel=1e-6)
    assert float(stats.chi2.sf(2 * 63 * np.log(2), df=2)) == pytest.approx(NORMAL_TAIL_MASS)


@settings(deadline=None, max_examples=30)
@given(
    n=st.integers(0, 3 * BLOCK + 5),
    std=st.floats(0, 1e6, allow_subnormal=False),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_adding_adds_the_same_normals(n: int, std: float, dtype: torch.dtype) -> None:
    base = torch.linspace(-1, 1, n, dtype=dtype)
    added = NoiseGenerator.seeded(5, "test").add_normal_(base.clone(), std)
    expected = base.double() + float(torch.tensor(std, dtype=dtype)) * normals(5, n, dtype).double()
    precision = 1e-6 if dtype == torch.float32 else 1e-14
    assert bool(((added.double() - expected).abs() <= precision * (10 * std + 1)).all())


def test_blocks_concatenate() -> None:
    whole = normals(6, 3 * BLOCK + 7)
    generator = NoiseGenerator.seeded(6, "test")
    parts = [generator.normal_(torch.empty(size)) for size in (BLOCK, 2 * BLOCK, 7)]
    assert torch.equal(torch.cat(parts), whole)


def test_precisions_agree() -> None:
    single, double = normals(7, 10_001), normals(7, 10_001, torch.float64)
    assert float((single - double).abs().max()) < 2e-6


def test_names_and_seeds_are_independent_streams() -> None:
    # 3 correlations at 5 sigma: false alarm 2e-6.
    n = 100_000
    base = normals(1, n)
    for other in (normals(2, n), normals(1, n, name="other"), normals(1, n, name="test ")):
        assert abs(float((base * other).mean())) < 5 / np.sqrt(n)


def test_secret_generators_differ_and_say_so() -> None:
    one, two = NoiseGenerator.secure("noise"), NoiseGenerator.secure("noise")
    assert one.secret
    assert not NoiseGenerator.seeded(1, "noise").secret
    assert one.fingerprint() != two.fingerprint()
    assert not (one.uint64(4) == two.uint64(4)).any()


def test_fingerprint_names_the_key_without_giving_it_away() -> None:
    generator = NoiseGenerator.seeded(1, "noise")
    before = generator.fingerprint()
    generator.uint64(100)
    assert generator.fingerprint() == before == NoiseGenerator.seeded(1, "noise").fingerprint()
    assert before != NoiseGenerator.seeded(1, "sampling").fingerprint()
    assert before != NoiseGenerator.seeded(2, "noise").fingerprint()
    assert len(bytes.fromhex(before)) == 32
    assert before not in (generator._key.hex(), hashlib.sha256(generator._key).hexdigest())


@pytest.mark.parametrize("clone", [copy.deepcopy, copy.copy, lambda g: pickle.loads(pickle.dumps(g))])
def test_a_secret_key_is_never_copied(clone: Any) -> None:
    generator = NoiseGenerator.secure("noise")
    assert generator._key not in pickle.dumps(generator)
    assert generator._key.hex() not in repr(generator)
    twin = clone(generator)
    assert twin.secret
    assert twin.name == "noise"
    assert twin.fingerprint() != generator.fingerprint()


@pytest.mark.parametrize("clone", [copy.deepcopy, copy.copy, lambda g: pickle.loads(pickle.dumps(g))])
@given(n=st.integers(0, 5000), m=st.integers(0, 50))
@settings(deadline=None, max_examples=25)
def test_a_seeded_generator_keeps_its_position(clone: Any, n: int, m: int) -> None:
    generator = NoiseGenerator.seeded(8, "noise")
    generator.normal_(torch.empty(n))
    generator.uint64(m)
    twin = clone(generator)
    assert torch.equal(twin.normal_(torch.empty(99)), generator.normal_(torch.empty(99)))


def conditioned(byte: int = 1, secret: bool = True) -> NoiseGenerator:
    return NoiseGenerator.conditioned(bytes([byte] * 32), "noise", secret=secret)


def test_a_conditioned_key_is_the_one_given() -> None:
    by_hand = NoiseGenerator(bytes([1] * 32), "noise", None)
    assert (conditioned().uint64(9) == by_hand.uint64(9)).all()
    assert conditioned().secret
    assert not conditioned(secret=False).secret
    assert NoiseGenerator.secure("noise").secret
    assert not NoiseGenerator.seeded(1, "noise").secret


def test_rekeying_starts_the_other_keys_stream() -> None:
    generator = conditioned(1)
    before = generator.fingerprint()
    generator.normal_(torch.empty(10_001))
    generator.rekey(bytes([2] * 32))
    assert generator.position == 0
    assert generator.fingerprint() == conditioned(2).fingerprint() != before
    assert generator.secret
    fresh = conditioned(2)
    assert torch.equal(generator.normal_(torch.empty(777)), fresh.normal_(torch.empty(777)))
    assert (generator.uint64(5) == fresh.uint64(5)).all()


def test_rekeying_leaves_nothing_of_the_old_stream() -> None:
    generator = conditioned(1)
    generator.normal_(torch.empty(100))
    generator.rekey(bytes([2] * 32))
    assert not generator._words.any()
    assert not generator._turns.any()
    assert not generator._wide.any()
    assert not generator._scratch


@pytest.mark.parametrize("secret", [True, False])
@pytest.mark.parametrize("clone", [copy.deepcopy, copy.copy, lambda g: pickle.loads(pickle.dumps(g))])
def test_a_conditioned_key_is_never_copied(clone: Any, secret: bool) -> None:
    generator = conditioned(secret=secret)
    assert generator._key not in pickle.dumps(generator)
    assert generator._key.hex() not in repr(generator)
    twin = clone(generator)
    assert twin.name == "noise"
    assert twin.fingerprint() != generator.fingerprint()


def test_draws_and_rekeying_take_turns() -> None:
    # Without the lock a draw would span two streams: every block must come whole from one key.
    generator, n = conditioned(0), 50_000
    known = {conditioned(byte).uint64(n).tobytes() for byte in range(40)}
    found: list[bytes] = []

    def draw() -> None:
        for _ in range(40):
            found.append(generator.uint64(n).tobytes()[: 8 * n])

    thread = threading.Thread(target=draw)
    thread.start()
    for byte in range(1, 40):
        generator.rekey(bytes([byte] * 32))
    thread.join()
    starts = {block[:800] for block in known}
    assert all(block in known for block in found if block[:800] in starts)


def _child(generator: NoiseGenerator, queue: Any) -> None:
    queue.put((generator.fingerprint(), generator.uint64(4).tolist()))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_secret_generator_gets_its_own_key() -> None:
    generator = NoiseGenerator.secure("noise")
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=_child, args=(generator, queue))
    process.start()
    fingerprint, words = queue.get()
    process.join()
    assert fingerprint != generator.fingerprint()
    assert words != generator.uint64(4).tolist()


@pytest.mark.parametrize("p", [0.0, 1e-4, 0.07, 0.5, 1 - 2**-20, 1.0])
def test_bernoulli_law(p: float) -> None:
    # Total count and the counts of its two halves: false alarm 3e-6 for each p strictly between 0 and 1.
    n = 200_000
    found = NoiseGenerator.seeded(9, f"coins {p}").bernoulli(n, p)
    assert found.dtype == np.int64
    assert (np.diff(found) > 0).all()
    assert len(found) == 0 or (found[0] >= 0 and found[-1] < n)
    if p in (0.0, 1.0):
        assert len(found) == p * n
    else:
        for part, size in ((found, n), (found[found < n // 2], n // 2), (found[found >= n // 2], n // 2)):
            assert stats.binomtest(len(part), size, p).pvalue > 1e-6


def test_bernoulli_compares_64_bits() -> None:
    # The coin of record i is word i of the stream; p is exactly word 3 over 2^64 where float64 allows.
    words = NoiseGenerator.seeded(10, "coins").uint64(1000)
    p = float(words[3]) / 2**64
    expected = np.flatnonzero([int(word) < int(p * 2**64) for word in words])
    assert (NoiseGenerator.seeded(10, "coins").bernoulli(1000, p) == expected).all()


@pytest.mark.parametrize("n", [0, 1, 2, 3, BLOCK + 1, (1 << 18) // 8 + 3])
def test_uint64_is_one_stream(n: int) -> None:
    generator = NoiseGenerator.seeded(4, "words")
    both = np.concatenate((generator.uint64(n), generator.uint64(5)))
    assert (both == NoiseGenerator.seeded(4, "words").uint64(n + 5)).all()


def test_derived_seeds() -> None:
    seeds = {derive_seed(seed, name) for seed in (-1, 0, 1, 10**30) for name in ("", "a", "b", "weights")}
    assert len(seeds) == 16
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(0, "weights") == derive_seed(0, "weights")
    torch.Generator().manual_seed(max(seeds))


@pytest.mark.parametrize(
    "action",
    [
        lambda g: g.normal_(torch.empty(4, dtype=torch.float16)),
        lambda g: g.normal_(torch.empty(4, 4).t()),
        lambda g: g.normal_(torch.empty(4, device="meta")),
        lambda g: g.add_normal_(torch.empty(4), -1.0),
        lambda g: g.add_normal_(torch.empty(4), float("nan")),
        lambda g: g.bernoulli(-1, 0.5),
        lambda g: g.bernoulli(5, 1.5),
        lambda g: g.bernoulli(5, float("nan")),
        lambda g: g.uint64(-1),
        lambda g: g.rekey(bytes(32)),  # seeded
        lambda g: conditioned().rekey(bytes(31)),
        lambda g: conditioned(1).rekey(bytes([1] * 32)),
        lambda g: conditioned().seek(0),
        lambda g: NoiseGenerator.conditioned(b"short", "noise", secret=True),
    ],
)
def test_wrong_use_is_refused_in_one_line(action: Any) -> None:
    with pytest.raises(UsageError) as caught:
        action(NoiseGenerator.seeded(1, "noise"))
    assert "\n" not in str(caught.value)


# ---- lanes


def test_lanes_are_parts_of_one_stream_that_never_meet() -> None:
    """Lane i begins at counter (i + 1) 2^96 of the generator's own key; the generator itself stays where it was."""
    generator = NoiseGenerator.seeded(7, "noise")
    first = generator.uint64(4)
    lanes = generator.lanes(3)
    for number, lane in enumerate(lanes, start=1):
        encryptor = Cipher(AES(generator._key), CTR((number << 96).to_bytes(16, "big"))).encryptor()
        expected = np.frombuffer(encryptor.update(bytes(8 * BLOCK)), np.uint64)
        assert np.array_equal(lane.uint64(BLOCK), expected)
        assert (lane.name, lane.secret, lane.fingerprint()) == ("noise", False, generator.fingerprint())
    again = NoiseGenerator.seeded(7, "noise")
    assert np.array_equal(again.uint64(4), first)
    assert np.array_equal(again.uint64(4), generator.uint64(4))


def test_lanes_go_on_where_they_were() -> None:
    generator = NoiseGenerator.secure("noise")
    two = generator.lanes(2)
    drawn = [lane.uint64(8) for lane in two]
    four = generator.lanes(4)
    assert four[:2] == two
    drawn += [lane.uint64(8) for lane in four]
    assert len({tuple(words.tolist()) for words in drawn}) == 6


def test_a_new_key_has_new_lanes() -> None:
    generator = NoiseGenerator.conditioned(bytes(32), "noise", secret=True)
    (before,) = generator.lanes(1)
    generator.rekey(bytes(range(32)))
    (after,) = generator.lanes(1)
    assert after is not before
    assert after.fingerprint() == generator.fingerprint() != before.fingerprint()
