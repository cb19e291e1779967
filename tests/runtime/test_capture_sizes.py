"""Capture sizes, over all of a small range."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest

from runtime.core.errors import ConfigError
from runtime.model_executor import capture_sizes

SMALL = range(1, 9)
PARALLEL = [
    {
        "tp_size": tp,
        "dp_size": dp,
        "enable_dp_attention": dp_attention,
        "moe_dense_tp_size": dense,
        "enable_dp_lm_head": lm_head,
        "moe_all_to_all": all_to_all,
    }
    for tp, dp, dp_attention, dense, lm_head, all_to_all in itertools.product(
        (1, 2, 4, 8), (1, 2, 4, 8), (False, True), (None, 1, 2, 4, 8), (False, True), (False, True)
    )
    if (not dp_attention or (dp > 1 and tp % dp == 0)) and (dense is None or tp % dense == 0)
]


def attention_arguments(arguments: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in arguments.items() if name != "enable_dp_lm_head"}


def test_the_module_needs_no_torch() -> None:
    code = "import sys; import runtime.model_executor.capture_sizes; assert 'torch' not in sys.modules, 'torch'"
    subprocess.run([sys.executable, "-c", code], check=True)


class TestLists:
    def test_decode_sizes_are_the_known_ones(self) -> None:
        sizes = capture_sizes.decode_capture_sizes(600)
        assert sizes[:9] == [1, 2, 4, 8, 12, 16, 24, 32, 40]
        assert sizes[sizes.index(256) :] == [256, *range(272, 512, 16), 512, 544, 576, 600]

    def test_decode_sizes_with_several_tokens_per_request(self) -> None:
        sizes = capture_sizes.decode_capture_sizes(300, tokens_per_request=4)
        assert sizes == [*range(1, 9), *range(10, 33, 2), *range(40, 65, 4), *range(72, 257, 8), 272, 288, 300]

    def test_prefill_sizes_are_the_known_ones(self) -> None:
        assert capture_sizes.prefill_capture_sizes(5300) == [
            *range(4, 33, 4),
            *range(48, 257, 16),
            *range(288, 513, 32),
            *range(576, 1025, 64),
            *range(1280, 4097, 256),
            4608,
            5120,
            5300,
        ]

    def test_lengths_grow_fourfold_up_to_the_context(self) -> None:
        assert capture_sizes.decode_capture_lengths(5000) == [256, 1024, 4096, 5000]
        assert capture_sizes.decode_capture_lengths(1024) == [256, 1024]
        assert capture_sizes.decode_capture_lengths(100) == [100]

    def test_without_padding_every_batch_size_is_one(self) -> None:
        assert capture_sizes.decode_capture_sizes(5, padding=False) == [1, 2, 3, 4, 5]

    @pytest.mark.parametrize("largest", [*range(1, 80), 255, 256, 257, 495, 496, 497, 511, 512, 513, 4095, 4097])
    def test_every_list_ascends_and_ends_with_the_largest(self, largest: int) -> None:
        lists = [
            capture_sizes.decode_capture_sizes(largest),
            capture_sizes.decode_capture_sizes(largest, tokens_per_request=3),
            capture_sizes.decode_capture_sizes(largest, padding=False),
            capture_sizes.prefill_capture_sizes(largest),
            capture_sizes.decode_capture_lengths(largest),
        ]
        for sizes in lists:
            assert sizes == sorted(set(sizes))
            assert sizes[0] >= 1
            assert sizes[-1] == largest

    def test_chosen_sizes_are_sorted_once_and_end_at_the_largest_batch(self) -> None:
        for largest in SMALL:
            for count in (1, 2, 3):
                for chosen in itertools.product(SMALL, repeat=count):
                    sizes = capture_sizes.decode_capture_sizes(largest, chosen=chosen)
                    assert sizes == capture_sizes.prefill_capture_sizes(largest, chosen=chosen)
                    assert sizes == sorted(set(sizes))
                    assert sizes[-1] == min(max(chosen), largest)
                    assert {size for size in chosen if size <= largest} <= set(sizes)

    def test_the_list_that_was_chosen_is_left_as_it_is(self) -> None:
        chosen = [8, 2]
        capture_sizes.decode_capture_sizes(4, chosen=chosen)
        assert chosen == [8, 2]

    @pytest.mark.parametrize("chosen", [(), (0,), (4, -1), (True,), (2.0,), ("4",)])
    def test_sizes_that_are_none_are_refused(self, chosen: tuple[object, ...]) -> None:
        with pytest.raises(ConfigError, match="capture size"):
            capture_sizes.decode_capture_sizes(4, chosen=chosen)  # type: ignore[arg-type]

    @pytest.mark.parametrize("largest", [0, -1, True, 1.5])
    def test_a_limit_that_is_none_is_refused(self, largest: object) -> None:
        with pytest.raises(ConfigError, match="max_batch_size"):
            capture_sizes.decode_capture_sizes(largest)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="max_num_tokens"):
            capture_sizes.prefill_capture_sizes(largest)  # type: ignore[arg-type]


class TestPredicates:
    def test_a_feed_forward_gather_is_needed_exactly_where_rows_leave_the_attention_group(self) -> None:
        seen = set()
        for arguments in PARALLEL:
            group = arguments["tp_size"] // arguments["dp_size"] if arguments["enable_dp_attention"] else None
            dense = arguments["moe_dense_tp_size"] or arguments["tp_size"]
            stays = group is None or (
                dense <= group
                and arguments["moe_dense_tp_size"] is not None
                and arguments["enable_dp_lm_head"]
                and arguments["moe_all_to_all"]
            )
            assert capture_sizes.require_mlp_tp_gather(**arguments) is not stays, arguments
            seen.add(stays)
        assert seen == {False, True}

    def test_an_attention_gather_is_needed_exactly_where_rows_are_spread_over_a_group(self) -> None:
        seen = set()
        for arguments in PARALLEL:
            spread = arguments["moe_all_to_all"] or arguments["moe_dense_tp_size"] is not None
            if arguments["enable_dp_attention"] and arguments["dp_size"] == arguments["tp_size"]:
                spread = False
            assert capture_sizes.require_attn_tp_gather(**attention_arguments(arguments)) is spread, arguments
            seen.add(spread)
        assert seen == {False, True}

    def test_a_buffer_is_needed_for_either_gather(self) -> None:
        for arguments in PARALLEL:
            either = capture_sizes.require_mlp_tp_gather(**arguments) or capture_sizes.require_attn_tp_gather(
                **attention_arguments(arguments)
            )
            assert capture_sizes.require_gathered_buffer(**arguments) is either, arguments

    def test_dense_layers_on_one_rank_alone_need_the_buffer(self) -> None:
        # --tp 8 --moe-dense-tp-size 1, which once crashed prefill graphs.
        assert capture_sizes.require_gathered_buffer(tp_size=8, moe_dense_tp_size=1)
        assert not capture_sizes.require_gathered_buffer(tp_size=8)

    @pytest.mark.parametrize(
        ("arguments", "named"),
        [
            ({"tp_size": 0}, "tp_size=0"),
            ({"tp_size": 4, "dp_size": 0}, "dp_size=0"),
            ({"tp_size": 4, "dp_size": 1, "enable_dp_attention": True}, "dp_size=1"),
            ({"tp_size": 4, "dp_size": 3, "enable_dp_attention": True}, "dp_size=3"),
            ({"tp_size": 4, "moe_dense_tp_size": 3}, "moe_dense_tp_size=3"),
            ({"tp_size": 4, "moe_dense_tp_size": 0}, "moe_dense_tp_size=0"),
        ],
    )
    def test_sizes_that_do_not_fit_are_refused(self, arguments: dict[str, int], named: str) -> None:
        for predicate in (
            capture_sizes.require_mlp_tp_gather,
            capture_sizes.require_attn_tp_gather,
            capture_sizes.require_gathered_buffer,
        ):
            with pytest.raises(ConfigError, match=named):
                predicate(**arguments)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=named):
            capture_sizes.ParallelSizes(**arguments)  # type: ignore[arg-type]


class TestAlignment:
    def test_it_is_the_smallest_that_every_division_goes_into(self) -> None:
        for tp, cp, micro, gathered in itertools.product(SMALL, SMALL, (1, 2, 3), (False, True)):
            alignment = capture_sizes.row_alignment(
                attn_tp_size=tp, attn_cp_size=cp, gathered=gathered, num_micro_batches=micro
            )

            def fits(rows: int, tp: int = tp, cp: int = cp, micro: int = micro, gathered: bool = gathered) -> bool:
                if rows % micro:
                    return False
                part = rows // micro
                return part % cp == 0 and (not gathered or part % tp == 0)

            assert alignment == next(rows for rows in itertools.count(1) if fits(rows))

    def test_a_least_common_multiple_and_not_what_looks_like_one(self) -> None:
        def aligned(tp: int, cp: int) -> int:
            return capture_sizes.row_alignment(attn_tp_size=tp, attn_cp_size=cp, gathered=True)

        assert aligned(4, 6) == 12
        assert aligned(2, 4) == 4
        assert aligned(4, 2) == 4

    def test_context_parallelism_divides_without_a_gather_too(self) -> None:
        assert capture_sizes.row_alignment(attn_tp_size=8, attn_cp_size=3, gathered=False) == 3

    def test_the_sizes_of_one_rank_ask_for_nothing(self) -> None:
        alone = capture_sizes.ParallelSizes()
        assert (alone.alignment(), alone.attn_tp_size) == (1, 1)
        assert not alone.gathered_buffer()
        assert not alone.mlp_tp_gather()

    def test_parallel_sizes_say_what_the_functions_say_of_them(self) -> None:
        seen = set()
        for tp, dp, attention, dense, head, exchange, micro in itertools.product(
            (1, 2, 4, 8), (1, 2, 4), (False, True), (None, 1, 2), (False, True), (False, True), (1, 2)
        ):
            if (attention and (dp == 1 or tp % dp)) or (dense is not None and tp % dense):
                continue
            shared = {
                "tp_size": tp,
                "dp_size": dp,
                "enable_dp_attention": attention,
                "moe_dense_tp_size": dense,
                "enable_dp_lm_head": head,
                "moe_all_to_all": exchange,
            }
            for cp in (1, 2):
                group = tp // dp if attention else tp
                if group % cp:
                    continue
                sizes = capture_sizes.ParallelSizes(**shared, attn_cp_size=cp, num_micro_batches=micro)
                gathered = capture_sizes.require_gathered_buffer(**shared)
                assert sizes.attn_tp_size * cp == group
                assert sizes.gathered_buffer() is gathered
                assert sizes.mlp_tp_gather() is capture_sizes.require_mlp_tp_gather(**shared)
                expected = capture_sizes.row_alignment(
                    attn_tp_size=group // cp, attn_cp_size=cp, gathered=gathered, num_micro_batches=micro
                )
                assert sizes.alignment() == expected
                seen.add(expected)
        assert {1, 2, 4, 8, 16} <= seen

    def test_context_parallelism_divides_the_ranks_of_an_attention_group_or_is_refused(self) -> None:
        for tp, dp, attention, cp in itertools.product(SMALL, SMALL, (False, True), range(-1, 17)):
            if attention and (dp == 1 or tp % dp):
                continue  # refused for that, whatever it is divided by
            shared = {"tp_size": tp, "dp_size": dp, "enable_dp_attention": attention}
            group = tp // dp if attention else tp
            if cp < 1 or group % cp:
                said = "it must be an integer >= 1" if cp < 1 else f"it must divide the {group} ranks that share"
                with pytest.raises(ConfigError, match=rf"^attn_cp_size={cp} is not valid: {said}"):
                    capture_sizes.ParallelSizes(**shared, attn_cp_size=cp)
                continue
            sizes = capture_sizes.ParallelSizes(**shared, attn_cp_size=cp)
            assert sizes.attn_tp_size * cp == group
            assert sizes.alignment() % cp == 0

    @pytest.mark.parametrize("value", [True, 1.0, "2", None])
    def test_a_number_of_context_parallel_ranks_is_an_integer(self, value: object) -> None:
        with pytest.raises(ConfigError, match=r"attn_cp_size=.* must be an integer >= 1"):
            capture_sizes.ParallelSizes(tp_size=4, attn_cp_size=value)  # type: ignore[arg-type]

    @pytest.mark.parametrize("name", ["attn_tp_size", "attn_cp_size", "num_micro_batches"])
    def test_sizes_below_one_are_refused(self, name: str) -> None:
        with pytest.raises(ConfigError, match=f"{name}=0"):
            capture_sizes.row_alignment(**{name: 0})  # type: ignore[arg-type]

    def test_the_multiple_of_a_size_is_the_smallest_whose_rows_are_aligned(self) -> None:
        for alignment, rows in itertools.product(range(1, 25), range(1, 13)):
            multiple = capture_sizes.size_multiple(alignment, rows)
            assert multiple == next(size for size in itertools.count(1) if size * rows % alignment == 0)


class TestFilter:
    def test_nothing_is_lost_and_nothing_is_larger_than_needed(self) -> None:
        for multiple in SMALL:
            for count in (1, 2, 3):
                for sizes in itertools.combinations(range(1, 20), count):
                    aligned = capture_sizes.filter_for_gather(sizes, multiple)
                    assert aligned == sorted(set(aligned))
                    assert all(size % multiple == 0 for size in aligned)
                    for size in sizes:
                        held = capture_sizes.find_capture_size(aligned, size)
                        assert held is not None
                        assert held - size < multiple
                    assert aligned[-1] - sizes[-1] < multiple

    def test_the_top_of_the_range_stays(self) -> None:
        assert capture_sizes.filter_for_gather([1, 2, 248, 250], 8) == [8, 248, 256]

    def test_a_limit_is_kept(self) -> None:
        for multiple, limit in itertools.product(SMALL, range(1, 20)):
            for sizes in itertools.combinations(range(1, 20), 2):
                if limit < multiple:
                    with pytest.raises(ConfigError):
                        capture_sizes.filter_for_gather(sizes, multiple, limit=limit)
                    continue
                aligned = capture_sizes.filter_for_gather(sizes, multiple, limit=limit)
                assert all(0 < size <= limit and size % multiple == 0 for size in aligned)
                for wanted in range(1, min(sizes[-1], limit // multiple * multiple) + 1):
                    assert capture_sizes.find_capture_size(aligned, wanted) is not None

    def test_the_error_names_the_sizes_and_the_multiple(self) -> None:
        with pytest.raises(ConfigError, match=r"none of \[2, 5\] can be made a multiple of 8 up to 7"):
            capture_sizes.filter_for_gather([5, 2], 8, limit=7)
        with pytest.raises(ConfigError, match=r"none of \[\] can be made a multiple of 4"):
            capture_sizes.filter_for_gather([], 4)

    @pytest.mark.parametrize(("sizes", "multiple"), [([0], 1), ([-4], 2), ([4], 0)])
    def test_what_is_no_size_is_refused(self, sizes: list[int], multiple: int) -> None:
        with pytest.raises(ConfigError, match="must be an integer >= 1"):
            capture_sizes.filter_for_gather(sizes, multiple)


def test_a_batch_finds_the_smallest_size_that_holds_it() -> None:
    for count in (0, 1, 2, 3):
        for sizes in itertools.combinations(SMALL, count):
            for wanted in range(1, 11):
                found = capture_sizes.find_capture_size(sizes, wanted)
                assert found == min((size for size in sizes if size >= wanted), default=None)
