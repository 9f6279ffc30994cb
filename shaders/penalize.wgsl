// Penalties on the logits of recently used tokens, in place, as llama.cpp defines them: the repeat penalty divides
// positive logits and multiplies negative ones; the presence penalty is subtracted once, the frequency penalty once
// for every occurrence. One thread a token; recent = (ids, counts) pairs, options = (how many, repeat, presence,
// frequency).
// Bindings: recent, options, logits. Called by ops/sample.py.
@group(0) @binding(0) var<storage, read> recent: array<vec2<u32>>;
@group(0) @binding(1) var<storage, read> options: array<f32>;
@group(0) @binding(2) var<storage, read_write> logits: array<f32>;

@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x >= u32(options[0])) {
        return;
    }
    let entry = recent[id.x];
    let value = logits[entry.x];
    logits[entry.x] = select(value * options[1], value / options[1], value > 0.0) - options[2]
        - options[3] * f32(entry.y);
}
