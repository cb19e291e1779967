"""The seams of platforms: device operations, factories, discovery, and ways to record a step.

`runtime.platforms.current_platform.X` is the method of whichever class was chosen. It comes into being when the
platform is chosen, so that what is asked before is hooked at a class or at `discovery`.
"""

from __future__ import annotations

from runtime.plugins.hook_target import Part, When, both, main, members, only_with, scheduler

_PLATFORM = "runtime.platforms.current_platform"
_DISCOVERY = "runtime.platforms.discovery"
_PROBE = "runtime.platforms.probe"
_GRAPHS = "runtime.platforms.graph_backend"
_OP = "runtime.platforms.multi_platform.MultiPlatformOp"

PLATFORM_TARGETS = (
    *members(
        _PLATFORM,
        scheduler(When.ONCE),
        get_device="which device this process works on",
        set_device="what is to be done when the device becomes current",
        get_device_name="what the device is called in the log",
        get_device_total_memory="how much memory the device is said to have",
        get_available_memory="how much memory the KV pool may reckon with",
        empty_cache="what is given back before memory is counted",
        is_pin_memory_available="whether what goes to the device is page-locked",
        seed_everything="the default generators, for an engine with a random_seed",
    ),
    *members(
        _PLATFORM,
        scheduler(When.ONCE, When.CAPTURE),
        get_current_memory_usage="how much memory the process is said to hold",
        synchronize="every wait for the device",
    ),
    *members(
        _PLATFORM,
        scheduler(When.STEP, When.CAPTURE),
        inference_mode="the context manager that a step, and its sampling, runs in",
    ),
    *members(
        _PLATFORM,
        main(When.DEMAND),
        get_device_uuid="what tells devices apart in `python -m runtime platform`",
        get_device_capability="which generation of hardware is reported",
        get_cpu_architecture="which processors the host is said to have",
        create_stream="the queue that `python -m runtime platform --check` works on",
        current_stream="the queue that it waits for",
        use_stream="the context manager in which work goes to a queue",
        create_event="the marks that it takes times with",
        get_torch_distributed_backend_str="the backend of collectives",
        get_profiler_activity="what torch's profiler records of the device",
        is_out_of_tree="whether the platform is said to come from a plugin",
    ),
    *members(
        _PLATFORM,
        both(When.DEMAND),
        is_available="whether there is such a device, for who asks once it is chosen; to change the choice, hook"
        " runtime.platforms.discovery or the platform's class",
        is_cuda="whether this is the platform for NVIDIA GPUs; plugins ask, the runtime never does",
        is_rocm="the same for AMD GPUs",
        is_cpu="the same for the CPU",
        is_xpu="the same for Intel GPUs",
        is_npu="the same for Ascend NPUs",
        is_musa="the same for Moore Threads GPUs",
        is_mps="the same for Apple GPUs",
        is_cuda_alike="whether the device module has CUDA's surface",
    ),
    *members(
        _PLATFORM,
        scheduler(When.ONCE),
        init_backend="what the process prepares before the device is used",
        apply_server_args_defaults="values for arguments that were left open",
        get_default_attention_backend="which class computes attention",
        get_mha_kv_pool_cls="which class keeps keys and values",
        get_paged_allocator_cls="which class hands out KV slots",
        get_graph_runner_cls="which class replays decodes",
        post_load_model="a model whose weights have been loaded",
    ),
    *only_with(
        Part.PREFILL_RUNNER,
        members(
            _PLATFORM,
            scheduler(When.ONCE),
            get_prefill_graph_runner_cls="which class replays steps with prompts",
        ),
    ),
    *members(
        _PLATFORM,
        scheduler(When.ONCE, When.CAPTURE, When.EVENT),
        capabilities="what the platform says it can do; a step in which a request draws its token asks too",
    ),
    *members(
        _PLATFORM,
        scheduler(When.ONCE, When.CAPTURE, When.EVENT),
        get_dispatch_key="which forward of an operation runs, asked at the start, and when the operation runs for the"
        " first time",
    ),
    *members(
        _PLATFORM,
        scheduler(When.EVENT),
        get_mla_kv_pool_cls="which class keeps latents, for a model with latent attention",
        get_nsa_kv_pool_cls="which class keeps latents and index keys, for a model with sparse attention",
    ),
    *only_with(
        Part.GRAPH_RUNNER,
        (
            *members(
                _PLATFORM,
                scheduler(When.EVENT),
                get_compile_backend="what compiles recorded steps, where they are compiled",
            ),
            *members(
                _PLATFORM,
                scheduler(When.ONCE, When.CAPTURE),
                get_graph_backends="the ways there are to record a step",
            ),
        ),
    ),
    *members(
        "runtime.platforms.interface",
        scheduler(When.ONCE),
        fill_open="what each open argument is filled with",
    ),
    *members(
        _DISCOVERY,
        scheduler(When.ONCE),
        create_platform="the platform of a process, as it is made",
        select_platform="which platform it is",
    ),
    *members(
        _DISCOVERY,
        both(When.ONCE),
        unselected_distributions="whose plugins are left out; asked before plugins are loaded, so that in the main"
        " process only a hook that was applied by then runs",
    ),
    *members(
        "runtime.platforms.classes",
        scheduler(When.ONCE, When.CAPTURE),
        resolve_class="every class that a platform names, and the pool and the allocator where it names none",
    ),
    *members(
        "runtime.platforms.cpu.CpuDeviceMixin",
        scheduler(When.ONCE),
        is_available="whether the CPU may be chosen",
    ),
    *members(
        "runtime.platforms.accelerator.AcceleratorDeviceMixin",
        scheduler(When.EVENT),
        is_available="whether torch has a device, of every platform with a torch device module; asked where none is"
        " named",
    ),
    *members(
        _OP,
        scheduler(When.EVENT),
        forward="every call of an operation that has no forward of its own parameters",
    ),
    *members(
        _OP,
        scheduler(When.CAPTURE, When.EVENT),
        resolve_forward="which forward of an operation runs, decided when it runs for the first time",
    ),
    *members(
        _OP,
        both(When.DEMAND),
        register_oot_forward="the forwards that platforms of plugins bring",
    ),
    *members(
        _PROBE,
        scheduler(When.ONCE),
        declared_dtypes="the dtypes a model may run in, by the names that the platform declares",
        check_dtype="whether the device computes in the model's dtype",
        check_float64="whether it does in double precision, where that is declared",
    ),
    *only_with(
        Part.GRAPH_RUNNER,
        (
            *members(
                _PROBE,
                scheduler(When.EVENT),
                check_graph_capture="whether the device can record, for a graph runner on a device that records",
                check_compiler="whether the platform's compiler works, where steps are compiled",
            ),
            *members(
                _GRAPHS,
                scheduler(When.ONCE, When.CAPTURE),
                resolve_graph_backend_cls="which way to record a step is taken",
            ),
            *members(
                f"{_GRAPHS}.GraphBackend",
                scheduler(When.CAPTURE),
                capture_session="the context manager that a runner is made in, on a device that does not record",
            ),
            *members(
                f"{_GRAPHS}.DeviceGraphBackend",
                scheduler(When.EVENT),
                capture_session="the context manager of all recordings of a runner, on a device that records",
                begin="the start of a recording",
                end="the end of a recording, and what replays it",
                abort="the end of a recording that failed",
            ),
            *members(
                f"{_GRAPHS}.CudaGraphBackend",
                scheduler(When.EVENT),
                synchronize="the waits around recordings, of CUDA and HIP",
                side_stream="the context manager of the stream that they record on",
                new_graph="each graph that they record",
            ),
            *members(
                f"{_GRAPHS}.AcceleratorGraphBackend",
                scheduler(When.EVENT),
                synchronize="the waits around recordings, of any accelerator",
                side_stream="the context manager of the stream that it records on",
                new_graph="each graph that it records",
            ),
        ),
    ),
    *members(
        "runtime.platforms.report",
        main(When.DEMAND),
        describe="what `python -m runtime platform` says",
        check="what `python -m runtime platform --check` does",
    ),
)
"""Where no moment but "demand" is given, `python -m runtime platform` may run a target as well, in its own process."""
