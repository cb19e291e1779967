"""The device by itself: what torch asks of one, without the runtime."""

from __future__ import annotations

import time

import pytest
import torch
from acme_accelerator import device

MIB = 1 << 20


def on_device(*size: int, index: int = 0) -> torch.Tensor:
    return torch.randn(*size).to(f"acme:{index}")


class TestMemory:
    def test_what_tensors_hold_is_counted_and_comes_back(self) -> None:
        before = torch.acme.memory_allocated(0)
        tensor = torch.empty(3 * MIB, dtype=torch.uint8, device="acme:0")
        assert torch.acme.memory_allocated(0) == before + 3 * MIB
        del tensor
        assert torch.acme.memory_allocated(0) == before
        assert torch.acme.max_memory_allocated(0) >= before + 3 * MIB

    def test_given_back_memory_is_kept_for_later_until_the_cache_is_emptied(self) -> None:
        torch.acme.empty_cache()
        free, total = torch.acme.mem_get_info(0)
        assert total == torch.acme.get_device_properties(0).total_memory
        tensor = torch.empty(5 * MIB, dtype=torch.uint8, device="acme:0")
        del tensor
        assert torch.acme.mem_get_info(0) == (free - 5 * MIB, total)
        torch.acme.empty_cache()
        assert torch.acme.mem_get_info(0) == (free, total)

    def test_each_device_has_its_own(self) -> None:
        before = torch.acme.memory_allocated(0), torch.acme.memory_allocated(1)
        tensor = torch.empty(MIB, dtype=torch.uint8, device="acme:1")
        assert tensor.device.index == 1
        assert (torch.acme.memory_allocated(0), torch.acme.memory_allocated(1)) == (before[0], before[1] + MIB)
        assert torch.acme.current_device() == 0

    def test_more_than_there_is_is_an_error_that_says_how_much(self) -> None:
        with pytest.raises(
            torch.OutOfMemoryError, match=r"acme:0 is out of memory: 1099511627776 bytes were asked for"
        ):
            torch.empty(1 << 40, dtype=torch.uint8, device="acme:0")

    def test_what_was_never_written_is_not_a_number(self) -> None:
        assert torch.empty(7, device="acme").isnan().all().item()


class TestOperations:
    def test_they_give_what_the_host_gives(self) -> None:
        x = torch.randn(4, 8)
        y = x.to("acme")
        for operation in (
            lambda t: t @ t.t(),
            lambda t: t[1:3, ::2].mul(2),
            lambda t: torch.softmax(t, dim=-1),
            lambda t: t.view(2, 2, 8).transpose(0, 1).reshape(4, 8),
            lambda t: t.index_select(0, torch.arange(2, device=t.device)),
            lambda t: torch.cat(t.split(2)),
            lambda t: torch.add(t, t, out=torch.empty(0, device=t.device)),
            lambda t: t.topk(3)[0],
        ):
            assert operation(y).device == torch.device("acme:0")
            torch.testing.assert_close(operation(y).cpu(), operation(x), rtol=0, atol=0)

    def test_views_write_to_what_they_are_views_of(self) -> None:
        tensor = torch.zeros(4, 8, device="acme")
        tensor[1:3].fill_(1)
        tensor[:, ::2].add_(1)
        tensor.view(8, 4)[0, 0] = 7
        assert tensor.cpu()[:, :2].tolist() == [[7, 0], [2, 1], [2, 1], [1, 0]]

    def test_a_tensor_left_on_the_host_is_refused(self) -> None:
        with pytest.raises(RuntimeError, match=r"aten::index_select was given a tensor on cpu and one on the device"):
            on_device(2, 2).index_select(0, torch.tensor([1]))
        assert (on_device(2) * torch.tensor(2.0)).device.type == "acme", "a number may be the host's"

    def test_tensors_of_two_devices_are_refused(self) -> None:
        with pytest.raises(RuntimeError, match="acme:0 and acme:1"):
            on_device(2) + on_device(2, index=1)
        assert on_device(2, index=1).to("acme:0").device.index == 0, "a copy may go from one to the other"

    def test_each_generator_repeats_what_it_drew(self) -> None:
        def draw() -> torch.Tensor:
            return torch.cat((torch.randn(4, device="acme"), torch.rand(4, device="acme:1").to("acme:0"))).cpu()

        torch.manual_seed(3)
        first, second = draw(), draw()
        assert not torch.equal(first, second)
        torch.acme.manual_seed_all(3)
        assert torch.equal(draw(), first)
        generator = torch.Generator(device="acme").manual_seed(5)
        own = torch.rand(4, device="acme", generator=generator)
        assert torch.equal(own, torch.rand(4, device="acme", generator=generator.manual_seed(5)))
        with pytest.raises(RuntimeError, match="was given a generator on cpu"):
            torch.rand(4, device="acme", generator=torch.Generator())


class TestKernels:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_rms_norm_normalises_each_row(self, dtype: torch.dtype) -> None:
        x, weight = torch.randn(3, 5, 16).to(dtype), torch.randn(16).to(dtype)
        wide = x.double()
        expected = wide * (wide.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight.double()
        out = torch.ops.acme.rms_norm(x.to("acme"), weight.to("acme"), 1e-5)
        torch.testing.assert_close(out.cpu().double(), expected, rtol=4 * torch.finfo(dtype).eps, atol=1e-6)

    def test_store_kv_puts_rows_into_slots_and_leaves_the_others(self) -> None:
        buffer = torch.zeros(2, 6, 4, device="acme")
        rows = torch.randn(3, 2, 4)
        torch.ops.acme.store_kv(buffer, torch.tensor([4, 1, 2], device="acme"), rows.to("acme"))
        expected = torch.zeros(2, 6, 4)
        expected[:, [4, 1, 2]] = rows.transpose(0, 1)
        assert torch.equal(buffer.cpu(), expected)
        with pytest.raises(RuntimeError, match="there is no slot 6"):
            torch.ops.acme.store_kv(buffer, torch.tensor([6], device="acme"), rows[:1].to("acme"))


class TestStreams:
    def test_work_goes_to_the_stream_that_is_current(self) -> None:
        default, stream = torch.acme.current_stream(), torch.acme.Stream()
        assert stream != default
        with torch.acme.stream(stream):
            assert torch.acme.current_stream() == stream
        assert torch.acme.current_stream() == default

    def test_what_another_stream_has_written_must_be_waited_for(self) -> None:
        default, stream = torch.acme.current_stream(), torch.acme.Stream()
        written = torch.ones(2, device="acme")
        with torch.acme.stream(stream), pytest.raises(RuntimeError, match="has not waited: call wait_stream first"):
            written + 1
        stream.wait_stream(default)
        with torch.acme.stream(stream):
            sum_ = written + 1
        with pytest.raises(RuntimeError, match=r"aten::add on stream 0 of acme:0 uses memory that was written on"):
            sum_ + 1
        stream.synchronize()
        assert (sum_ + 1).tolist() == [3, 3]

    def test_what_another_stream_reads_must_not_be_written_before_it_was_waited_for(self) -> None:
        default, stream = torch.acme.current_stream(), torch.acme.Stream()
        shared = torch.ones(2, device="acme")
        stream.wait_stream(default)
        with torch.acme.stream(stream):
            shared + 1
        assert shared.tolist() == [1, 1], "two may read"
        with pytest.raises(RuntimeError, match="uses memory that was read on stream"):
            shared.fill_(2)
        default.wait_stream(stream)
        shared.fill_(2)

    def test_an_event_carries_the_order_of_its_stream(self) -> None:
        stream, event = torch.acme.Stream(), torch.acme.Event()
        written = torch.ones(2, device="acme")
        event.record()
        late = torch.ones(2, device="acme")
        stream.wait_event(event)
        with torch.acme.stream(stream):
            assert (written + 1).tolist() == [2, 2]
            with pytest.raises(RuntimeError, match="has not waited"):
                late + 1

    def test_events_tell_the_time_between_them(self) -> None:
        start, end = torch.acme.Event(enable_timing=True), torch.acme.Event(enable_timing=True)
        began = time.perf_counter()
        start.record()
        time.sleep(0.02)
        end.record()
        longest = (time.perf_counter() - began) * 1000
        assert end.query()
        assert 20 <= start.elapsed_time(end) <= longest


def record(graph: torch.accelerator.Graph, step: object) -> torch.Tensor:
    stream = torch.acme.Stream()
    stream.wait_stream(torch.acme.current_stream())
    with torch.acme.stream(stream):
        graph.capture_begin()
        try:
            out = step()  # type: ignore[operator]
        finally:
            graph.capture_end()
    torch.acme.current_stream().wait_stream(stream)
    return out


class TestGraphs:
    def test_a_replay_does_the_step_again_on_what_its_input_holds_now(self) -> None:
        source, weight = torch.zeros(4, 8, device="acme"), on_device(8, 8)
        slots, buffer = torch.arange(4, device="acme"), torch.zeros(1, 4, 8, device="acme")

        def step() -> torch.Tensor:
            hidden = torch.cat((source @ weight, torch.zeros(4, 8, device="acme"))).split(4)[0].clone()
            hidden = torch.ops.acme.rms_norm(hidden, weight[0], 1e-5)
            torch.ops.acme.store_kv(buffer, slots, hidden.unsqueeze(1))
            return torch.add(hidden, 1, out=torch.empty(0, device="acme")).mul_(2)

        graph = torch.accelerator.Graph()
        before = torch.acme.counters()
        out = record(graph, step)
        for _ in range(2):
            source.copy_(torch.randn(4, 8))
            graph.replay()
            replayed, stored = out.cpu(), buffer.cpu()
            torch.testing.assert_close(replayed, step().cpu(), rtol=0, atol=0)
            torch.testing.assert_close(stored, buffer.cpu(), rtol=0, atol=0)
        after = torch.acme.counters()
        assert after["captures"] - before["captures"] == 1
        assert after["replays"] - before["replays"] == 2
        recorded = after["recorded_operations"] - before["recorded_operations"]
        assert recorded > 5
        assert after["replayed_operations"] - before["replayed_operations"] == 2 * recorded

    def test_intermediate_memory_is_the_graphs_until_it_goes(self) -> None:
        source = torch.ones(MIB, device="acme")
        graph = torch.accelerator.Graph()
        out = record(graph, lambda: (source + 1) * 2)
        torch.acme.empty_cache()
        others = [torch.zeros(MIB, device="acme") for _ in range(4)]
        graph.replay()
        assert out[0].item() == 4
        assert not any(other.any().item() for other in others), "nobody else has memory of the graph"
        held = torch.acme.memory_reserved()
        del out
        graph.reset()
        torch.acme.empty_cache()
        assert torch.acme.memory_reserved() <= held - 8 * MIB

    def test_graphs_of_one_pool_share_it(self) -> None:
        source = torch.ones(MIB, device="acme")

        def grown(pool: object) -> tuple[int, torch.accelerator.Graph]:
            graph = torch.accelerator.Graph(pool=pool)
            before = torch.acme.memory_reserved()
            record(graph, lambda: ((source + 1) * 2).sum())
            return torch.acme.memory_reserved() - before, graph

        alone, first = grown(None)
        again, second = grown(first.pool())
        assert alone >= 4 * MIB
        assert again < MIB
        pool = first.pool()
        assert second.pool() == pool
        first.reset()
        grown(pool)
        second.reset()
        with pytest.raises(RuntimeError, match="the memory pool to share has gone with the last graph that used it"):
            grown(pool)

    @pytest.mark.parametrize(
        ("what", "step"),
        [
            ("reading a value", lambda: torch.ones(2, device="acme").sum().item()),
            ("a copy between the host and the device", lambda: torch.ones(2, device="acme").cpu()),
            ("a copy between the host and the device", lambda: torch.ones(2).to("acme")),
            (
                "aten::nonzero, whose result has a size that only the device knows,",
                lambda: torch.ones(2, device="acme").nonzero(),
            ),
            ("waiting for the device", lambda: torch.acme.synchronize()),
        ],
    )
    def test_what_a_replay_could_not_do_again_is_refused(self, what: str, step: object) -> None:
        graph = torch.accelerator.Graph()
        stream = torch.acme.Stream()
        with torch.acme.stream(stream):
            graph.capture_begin()
            with pytest.raises(RuntimeError, match=f"acme: {what} is not possible while a graph is recorded"):
                step()  # type: ignore[operator]
            with pytest.raises(RuntimeError, match=f"the graph cannot be used, because {what} was tried"):
                graph.capture_end()
        assert torch.ones(2, device="acme").sum().item() == 2, "afterwards all is as before"

    def test_a_graph_is_recorded_on_a_stream_of_its_own(self) -> None:
        with pytest.raises(RuntimeError, match="cannot be recorded on the default stream"):
            torch.accelerator.Graph().capture_begin()

    def test_what_another_stream_does_meanwhile_is_not_recorded(self) -> None:
        source, other = torch.zeros(2, device="acme"), torch.zeros(2, device="acme")
        graph, side = torch.accelerator.Graph(), torch.acme.Stream()
        side.wait_stream(torch.acme.current_stream())

        def step() -> torch.Tensor:
            with torch.acme.stream(side):
                other.add_(1)
            return source.add_(1)

        record(graph, step)
        graph.replay()
        side.synchronize()
        assert (source.tolist(), other.tolist()) == ([2, 2], [1, 1])


def test_the_module_says_what_it_is() -> None:
    assert torch.acme is device
    assert torch.accelerator.current_accelerator() == torch.device("acme")
    assert torch.acme.device_count() == 2
    assert [torch.acme.get_device_name(index) for index in (0, 1)] == ["Acme One 0", "Acme One 1"]
    with pytest.raises(RuntimeError, match="there is no device 2, the last is 1"):
        torch.acme.set_device(2)
