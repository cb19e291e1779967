"""The seams of models: how one is loaded, what its layers compute, and how logits become tokens."""

from __future__ import annotations

from runtime.plugins.hook_target import Part, When, at_some_only_with, members, only_with, recorded_members, scheduler

_LAYERS = "runtime.layers"
_MODELS = "runtime.models"
_ATTENTION = f"{_LAYERS}.attention"
_BACKEND = f"{_ATTENTION}.torch_backend.TorchAttentionBackend"
_SAMPLER = "runtime.sampling.sampler"

MODEL_TARGETS = (
    *members(
        f"{_MODELS}.loader",
        scheduler(When.ONCE),
        load_config="the class and the configuration of a model",
        resolve_dtype="which dtype it runs in",
        load_model="the model with its weights",
    ),
    *members(
        f"{_MODELS}.hf_config",
        scheduler(When.ONCE),
        read_configs="what `config.json` and `generation_config.json` say",
        read_json_object="every JSON file of a checkpoint",
        read_rope_config="the parameters of the rotary embedding",
    ),
    *members(
        f"{_MODELS}.model_config.ModelConfig",
        scheduler(When.ONCE),
        from_hf="the configuration of a model, made of what its files say",
        fields_from_hf="the fields that the configurations of all models have",
        max_context_length="how many tokens a sequence may have at most",
    ),
    *members(
        f"{_MODELS}.model_config.LlamaConfig",
        scheduler(When.ONCE),
        fields_from_hf="those of all models but DeepSeek",
        sliding_windows_from_hf="how far each layer sees, of Llama",
        rotary_dim="how many dimensions are rotated, of all but DeepSeek",
        kv_pool_args="the sizes that the KV pool is made with, of all but DeepSeek",
        attention_config="what attention is told of a model, of all but DeepSeek",
    ),
    *members(
        f"{_MODELS}.deepseek_config.DeepseekConfig",
        scheduler(When.EVENT),
        fields_from_hf="those of DeepSeek",
        kv_pool_args="the sizes that the KV pool is made with, of DeepSeek",
        attention_config="what attention is told of a model, of DeepSeek",
    ),
    *members(
        f"{_MODELS}.registry",
        scheduler(When.ONCE),
        resolve_architecture="which class runs an architecture",
    ),
    *members(
        f"{_MODELS}.decoder.CausalLM",
        scheduler(When.ONCE),
        checkpoint_tensors="which weights are filled from which tensors",
    ),
    *members(
        f"{_MODELS}.decoder.CausalLM",
        scheduler(When.EVENT),
        ignorable_tensor="which other tensors a checkpoint may have, where it has such",
    ),
    *members(
        f"{_MODELS}.llama.LlamaForCausalLM",
        scheduler(When.ONCE),
        make_layer="each layer, as it is made, of Llama, Mistral, Qwen2 and Qwen3",
        make_attention="the attention of each layer, as it is made, of all but Qwen3 and DeepSeek",
    ),
    *members(
        f"{_MODELS}.mixtral.MixtralForCausalLM",
        scheduler(When.EVENT),
        make_layer="each layer, as it is made, of Mixtral",
    ),
    *members(
        f"{_MODELS}.qwen.Qwen3ForCausalLM",
        scheduler(When.EVENT),
        make_attention="the attention of each layer, as it is made, of Qwen3 with experts or without",
    ),
    *members(
        f"{_MODELS}.qwen.Qwen3MoeForCausalLM",
        scheduler(When.EVENT),
        make_layer="each layer, as it is made, of Qwen3 with experts",
    ),
    *members(
        f"{_MODELS}.deepseek.DeepseekForCausalLM",
        scheduler(When.EVENT),
        make_layer="each layer, as it is made, of DeepSeek",
        make_attention="the attention of each layer, as it is made, of DeepSeek",
        ignorable_tensor="which other tensors a DeepSeek checkpoint may have, where it has such",
    ),
    *members(
        f"{_MODELS}.deepseek.DeepseekV32ForCausalLM",
        scheduler(When.EVENT),
        make_attention="the attention of each layer, as it is made, of DeepSeek with sparse attention",
    ),
    *recorded_members(
        f"{_MODELS}.decoder.CausalLM",
        scheduler(When.STEP, When.CAPTURE),
        forward="a pass through all layers",
    ),
    *at_some_only_with(
        {When.CAPTURE: Part.DECODE_RUNNER},
        recorded_members(
            f"{_MODELS}.decoder.CausalLM",
            scheduler(When.STEP, When.CAPTURE),
            compute_logits="the output projection",
        ),
    ),
    *recorded_members(
        f"{_MODELS}.decoder.DecoderLayer",
        scheduler(When.LAYER, When.CAPTURE),
        forward="a layer",
    ),
    *recorded_members(
        f"{_MODELS}.llama.LlamaAttention",
        scheduler(When.LAYER, When.CAPTURE),
        forward="the attention of a layer, projections included",
    ),
    *recorded_members(
        f"{_LAYERS}.mlp.GatedMLP",
        scheduler(When.LAYER, When.CAPTURE),
        forward="the feed-forward part of a layer",
    ),
    *recorded_members(
        f"{_LAYERS}.linear.Linear",
        scheduler(When.LAYER, When.CAPTURE),
        forward="every matrix product without a residual",
        forward_add="every matrix product onto a residual",
    ),
    *recorded_members(
        f"{_LAYERS}.vocab_embedding.VocabEmbedding",
        scheduler(When.STEP, When.CAPTURE),
        forward="the vectors of tokens",
    ),
    *at_some_only_with(
        {When.CAPTURE: Part.DECODE_RUNNER},
        recorded_members(
            f"{_LAYERS}.vocab_embedding.VocabEmbedding",
            scheduler(When.STEP, When.CAPTURE),
            logits="the product with the token table",
        ),
    ),
    *recorded_members(
        f"{_LAYERS}.layernorm.RMSNorm",
        scheduler(When.LAYER, When.CAPTURE),
        forward="every normalisation, whatever the platform",
        forward_native="every normalisation on a platform without its own",
    ),
    *recorded_members(
        f"{_LAYERS}.layernorm.RMSNorm",
        scheduler(When.EVENT),
        forward_cuda="every normalisation on CUDA",
    ),
    *recorded_members(
        f"{_LAYERS}.layernorm.HeadNorm",
        scheduler(When.EVENT),
        forward_native="the normalisation of queries and keys, for a model that has one",
    ),
    *recorded_members(
        f"{_LAYERS}.layernorm.LayerNorm",
        scheduler(When.EVENT),
        forward="the normalisation of index keys, for a model with sparse attention",
    ),
    *recorded_members(
        f"{_LAYERS}.activation.SiluAndMul",
        scheduler(When.LAYER, When.CAPTURE),
        forward="every activation, whatever the platform",
        forward_native="every activation on a platform without its own",
    ),
    *recorded_members(
        f"{_LAYERS}.rotary.RotaryEmbedding",
        scheduler(When.STEP, When.CAPTURE),
        gather="the cosines and sines of a step",
        at="what all layers of a step rotate with",
    ),
    *recorded_members(
        f"{_LAYERS}.rotary.RotaryEmbedding",
        scheduler(When.LAYER, When.CAPTURE),
        forward="the rotation of queries and keys, whatever the platform",
        forward_native="the rotation on a platform without its own",
    ),
    *members(
        f"{_LAYERS}.rotary",
        scheduler(When.ONCE),
        inverse_frequencies="the frequencies of the rotary embedding",
        rotary_angles="the angle of each position",
    ),
    *recorded_members(
        f"{_LAYERS}.moe.SoftmaxRouter",
        scheduler(When.EVENT),
        forward="which experts tokens go to, for a mixture of experts",
    ),
    *recorded_members(
        f"{_LAYERS}.moe.GroupLimitedRouter",
        scheduler(When.EVENT),
        forward="which experts tokens go to, for a DeepSeek model",
    ),
    *recorded_members(
        f"{_LAYERS}.moe.Experts",
        scheduler(When.EVENT),
        forward="what experts compute, whatever the platform",
        forward_native="what they compute on a platform without its own",
        forward_cpu="what they compute on the CPU",
        gathered="their weights, gathered for each of a few pairs of token and expert",
    ),
    *only_with(
        Part.GRAPH_RUNNER,
        recorded_members(
            f"{_LAYERS}.moe.Experts",
            scheduler(When.EVENT),
            dense="every expert on every token, in a recording that cannot be left",
        ),
    ),
    *members(
        f"{_LAYERS}.moe.Experts",
        scheduler(When.EVENT),
        sorted="one expert after the other, for many pairs; never in a recording",
    ),
    *recorded_members(
        f"{_LAYERS}.moe.SparseMLP",
        scheduler(When.EVENT),
        forward="the feed-forward part of a layer, for a mixture of experts",
    ),
    *recorded_members(
        f"{_MODELS}.deepseek.DeepseekMoE",
        scheduler(When.EVENT),
        forward="the feed-forward part of a layer, for a DeepSeek model",
    ),
    *recorded_members(
        f"{_MODELS}.deepseek.LatentAttention",
        scheduler(When.EVENT),
        forward="the attention of a layer with latents, projections included",
    ),
    *recorded_members(
        f"{_MODELS}.deepseek.Indexer",
        scheduler(When.EVENT),
        forward="what the index of sparse attention brings",
    ),
    *recorded_members(
        f"{_ATTENTION}.latent",
        scheduler(When.EVENT),
        index_scores="how much each token is worth attending to, for sparse attention",
    ),
    *members(
        f"{_ATTENTION}.torch_backend",
        scheduler(When.ONCE),
        TorchAttentionBackend="what computes attention: REPLACE it by a subclass",
    ),
    *recorded_members(
        _BACKEND,
        scheduler(When.LAYER, When.CAPTURE),
        forward="attention, storing of keys and values included",
    ),
    *recorded_members(
        _BACKEND,
        scheduler(When.EVENT),
        forward_mla="attention over latents, for a model with such",
    ),
    *at_some_only_with(
        {When.CAPTURE: Part.PREFILL_RUNNER},
        members(
            _BACKEND,
            scheduler(When.PROMPT, When.EAGER, When.CAPTURE),
            init_forward_metadata="what all layers of a step that is not a replayed decode share",
        ),
    ),
    *only_with(
        Part.DECODE_RUNNER,
        (
            *members(
                _BACKEND,
                scheduler(When.REPLAY, When.CAPTURE),
                init_replay_metadata="what all layers of a replayed decode share",
            ),
            *members(_BACKEND, scheduler(When.CAPTURE), reserve="room for what replayed decodes share"),
        ),
    ),
    *only_with(
        Part.GRAPH_RUNNER,
        members(
            _BACKEND,
            scheduler(When.EVENT),
            reserved_tensors="what may not move, with RUNTIME_CHECK_GRAPHS",
        ),
    ),
    *members(
        f"{_ATTENTION}.metadata.MetadataBuilder",
        scheduler(When.STEP, When.CAPTURE),
        build="slots and masks, of the layers that see equally far",
    ),
    *only_with(
        Part.DECODE_RUNNER,
        (
            *members(
                f"{_ATTENTION}.metadata.MetadataBuilder",
                scheduler(When.REPLAY, When.CAPTURE),
                build_fixed="the same for a replayed decode",
            ),
            *members(
                f"{_ATTENTION}.metadata.MetadataBuilder", scheduler(When.CAPTURE), reserve="the room that it needs"
            ),
        ),
    ),
    *members(
        "runtime.sampling.logits_processor",
        scheduler(When.PROMPT, When.EAGER),
        last_hidden_states="which hidden states become logits; of a replayed decode all of them do, without it",
    ),
    *members(
        f"{_SAMPLER}.SamplingBatch",
        scheduler(When.STEP),
        from_requests="the sampling parameters of a step",
    ),
    *members(_SAMPLER, scheduler(When.STEP), sample="the choice of tokens"),
    *members(
        _SAMPLER,
        scheduler(When.EVENT),
        request_generator="the generator of each request that draws",
        probabilities="what tokens are drawn with",
        keep_top_k="what top_k leaves",
        draw="the draw itself",
    ),
    *members(
        f"{_SAMPLER}.KeepTopP",
        scheduler(When.EVENT),
        forward_native="what top_p leaves, on a platform without its own",
    ),
)
