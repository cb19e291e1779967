"""The seams of serving: how processes start, what the scheduler decides, and what goes in and out."""

from __future__ import annotations

from runtime.plugins.hook_target import Role, When, both, main, members, scheduler

_BOOTSTRAP = "runtime.plugins.bootstrap"
_SCHEDULER = "runtime.managers.scheduler"
_POLICY = "runtime.managers.batch_policy"
_TOKENIZER = "runtime.managers.tokenizer"
_MANAGER = "runtime.managers.tokenizer_manager"
_RUNNER = "runtime.model_executor.model_runner"
_BUILDER = "runtime.model_executor.batch_builder"
_CHANNEL = "runtime.managers.io_struct.Channel"
_ENGINE = "runtime.entrypoints.engine.Engine"

SERVING_TARGETS = (
    *members(
        _BOOTSTRAP,
        both(When.ONCE),
        load_process_plugins="the start of every process; in the main one, only a hook that was applied by then runs",
    ),
    *members(
        _BOOTSTRAP,
        scheduler(When.ONCE),
        building="the context manager that a process is built in, its plugins loaded",
        apply_remaining_hooks="the moments at which hooks that waited are applied",
    ),
    *members(
        "runtime.config.ServerArgs",
        both(When.ONCE),
        resolve="the arguments of an engine, checked",
    ),
    *members(
        "runtime.config.ServerArgs",
        scheduler(When.ONCE),
        with_platform_defaults="the arguments with what the platform fills in",
    ),
    *members(
        "runtime.managers.scheduler_process",
        scheduler(When.ONCE),
        run_scheduler_process="the whole life of the scheduler process",
    ),
    *members(_SCHEDULER, scheduler(When.ONCE), Scheduler="the scheduler: REPLACE it by a subclass"),
    *members(f"{_SCHEDULER}.Scheduler", scheduler(When.ONCE), event_loop="the loop, from the first request to the end"),
    *members(
        f"{_SCHEDULER}.Scheduler",
        scheduler(When.STEP),
        has_work="whether there is something to run",
        receive_messages="what has arrived, before each step",
        step="a step: choose, run, answer",
        get_next_batch_to_run="which requests run",
        run_batch="the tokens that a batch gives",
        process_batch_result="what becomes of them",
    ),
    *members(_POLICY, scheduler(When.ONCE), BatchPolicy="who runs next: REPLACE it by a subclass"),
    *members(
        f"{_POLICY}.BatchPolicy",
        scheduler(When.STEP),
        prefill_budget="how many prompt tokens a step takes",
    ),
    *members(
        f"{_POLICY}.BatchPolicy",
        scheduler(When.PROMPT),
        demand="what a request asks for",
        slots_between="how many slots growing takes",
    ),
    *members(
        f"{_POLICY}.BatchPolicy",
        scheduler(When.REQUEST),
        admit="whether a waiting request starts, and with how many tokens",
        expected_growth="how many slots a request is reckoned to take later",
    ),
    *members(
        f"{_POLICY}.BatchPolicy",
        scheduler(When.EVENT),
        next_chunk="how many tokens of a prompt that was cut run next",
        choose_retraction="which request gives up its slots when they run short",
    ),
    *members(
        _POLICY,
        scheduler(When.STEP),
        decayed_ratio="how much of the outputs to come is reckoned with, after a step that went well",
    ),
    *members(
        _POLICY,
        scheduler(When.EVENT),
        ratio_after_retraction="how much of it is reckoned with, after a retraction",
    ),
    *members(
        _POLICY,
        both(When.REQUEST),
        check_fits="which requests are refused",
        max_kv_slots="how many slots a request is reckoned to need at most",
    ),
    *members(
        "runtime.core.request.Request",
        scheduler(When.STEP),
        append_token="a new token, and whether it is the last",
    ),
    *members("runtime.core.request.Request", scheduler(When.EVENT), abort="requests that end early"),
    *members(_RUNNER, scheduler(When.ONCE), ModelRunner="the model with its pools: REPLACE it by a subclass"),
    *members(
        f"{_RUNNER}.ModelRunner",
        scheduler(When.STEP),
        prepare_forward_batch="the tensors of a step",
        forward="the logits of a step",
        sample="the tokens of a step",
    ),
    *members(
        f"{_RUNNER}.ModelRunner",
        scheduler(When.EAGER),
        forward_eager="the logits of a step that no graph runner takes",
    ),
    *members(f"{_RUNNER}.ModelRunner", both(When.DEMAND), release="what a request gives back, for who runs a model"),
    *members(
        _BUILDER,
        scheduler(When.ONCE),
        BatchBuilder="who gives requests their rows and slots: REPLACE it by a subclass",
    ),
    *members(
        f"{_BUILDER}.BatchBuilder",
        scheduler(When.STEP),
        build="a batch, its slots taken",
        available_slots="how many slots a batch can have",
        decode_slots="how many slots decodes take",
    ),
    *members(
        f"{_BUILDER}.BatchBuilder",
        scheduler(When.REQUEST),
        start="what a request starts with",
        cache="what others may share of it",
        finish="what requests that end leave behind",
        release="what a request gives back",
    ),
    *members(
        f"{_BUILDER}.BatchBuilder",
        scheduler(When.EVENT),
        check_integrity="the account of rows and slots, with RUNTIME_CHECK_INTEGRITY",
    ),
    *members(
        _CHANNEL,
        {Role.MAIN: frozenset({When.ONCE, When.REQUEST}), Role.SCHEDULER: frozenset({When.ONCE, When.STEP})},
        send="every message that goes out",
    ),
    *members(
        _CHANNEL,
        {Role.MAIN: frozenset({When.ONCE, When.STEP}), Role.SCHEDULER: frozenset({When.STEP})},
        receive="every message that comes in",
    ),
    *members(_CHANNEL, main(When.ONCE), close="the end of the connection"),
    *members(_MANAGER, main(When.ONCE), TokenizerManager="the main process's part: REPLACE it by a subclass"),
    *members(
        f"{_MANAGER}.TokenizerManager",
        main(When.REQUEST),
        encode="the token ids of a prompt",
        decode="the text of an output",
        check="which requests are refused before they are sent",
        stream="the requests that are sent, and the pieces that come back",
    ),
    *members(
        f"{_MANAGER}.TokenizerManager",
        main(When.DEMAND),
        scheduler_hooks="what the scheduler says of its hooks",
        scheduler_pid="which process the scheduler is",
    ),
    *members(f"{_MANAGER}.TokenizerManager", main(When.ONCE), close="the end of the scheduler"),
    *members(_TOKENIZER, main(When.ONCE), load_tokenizer="the tokenizer of a checkpoint"),
    *members(f"{_TOKENIZER}.IncrementalDetokenizer", main(When.STEP), add="the text of each new token"),
    *members(_ENGINE, main(When.REQUEST), generate="the prompts that come in, and the outputs"),
    *members(_ENGINE, main(When.EVENT), stream="the prompts whose outputs are asked for piece by piece"),
    *members(_ENGINE, main(When.DEMAND), applied_hooks="what is said of the hooks of all processes"),
    *members(_ENGINE, main(When.ONCE), shutdown="the end of an engine"),
)
