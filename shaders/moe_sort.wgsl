// Which token slots each expert has, in tiles of TILE: slots[t * TILE ...] are the slots of tile t, all of expert
// experts[t] and rising, with NONE in the places left over; tiles that are not needed have the expert NONE.
// One workgroup does it all: a thread goes through the ids for every WG-th expert, once to count and once to write; the
// ids pass by in pieces of CHUNK in workgroup memory.
// Bindings: ids, state, slots, experts. Called by ops/moe_sort.py.
@group(0) @binding(0) var<storage, read> ids: array<u32>;
@group(0) @binding(1) var<storage, read> state: array<u32>;
@group(0) @binding(2) var<storage, read_write> slots: array<u32>;
@group(0) @binding(3) var<storage, read_write> experts: array<u32>;

const CHUNK: u32 = 1024u;
const NONE: u32 = 0xFFFFFFFFu;
const EACH: u32 = (E + WG - 1u) / WG; // experts of a thread, one after the other so that tiles follow by number

var<workgroup> chunk: array<vec4<u32>, CHUNK / 4u>;
var<workgroup> needed: array<u32, WG>; // tiles of each thread's experts

fn stage(start: u32, count: u32, tid: u32) {
    workgroupBarrier();
    for (var i = tid; i < CHUNK / 4u; i += WG) {
        var four = vec4<u32>(NONE);
        for (var j = 0u; j < 4u; j++) {
            if (start + 4u * i + j < count) {
                four[j] = ids[start + 4u * i + j];
            }
        }
        chunk[i] = four;
    }
    workgroupBarrier();
}

@compute @workgroup_size(WG)
fn main(@builtin(local_invocation_index) tid: u32) {
    let count = min(SLOTS, state[1] * K);
    let first = tid * EACH;
    var found = array<u32, EACH>();
    for (var start = 0u; start < count; start += CHUNK) {
        stage(start, count, tid);
        for (var i = 0u; i < CHUNK / 4u; i++) {
            let four = chunk[i];
            for (var e = 0u; e < EACH; e++) {
                let same = vec4<u32>(four == vec4<u32>(first + e));
                found[e] += same.x + same.y + same.z + same.w;
            }
        }
    }
    var tiles = 0u;
    for (var e = 0u; e < EACH; e++) {
        tiles += select(0u, (found[e] + TILE - 1u) / TILE, first + e < E);
    }
    needed[tid] = tiles;
    workgroupBarrier();
    var tile = 0u; // of the thread's first expert
    var all = 0u;
    for (var i = 0u; i < WG; i++) {
        tile += select(0u, needed[i], i < tid);
        all += needed[i];
    }
    for (var i = all + tid; i < TILES; i += WG) {
        experts[i] = NONE;
    }
    var next = array<u32, EACH>(); // place of each expert's next slot
    for (var e = 0u; e < EACH; e++) {
        next[e] = tile * TILE;
        if (first + e < E) {
            let after = tile + (found[e] + TILE - 1u) / TILE;
            for (var i = tile * TILE + found[e]; i < after * TILE; i++) {
                slots[i] = NONE;
            }
            while (tile < after) {
                experts[tile] = first + e;
                tile++;
            }
        }
    }
    for (var start = 0u; start < count; start += CHUNK) {
        stage(start, count, tid);
        for (var i = 0u; i < CHUNK / 4u; i++) {
            let four = chunk[i];
            for (var e = 0u; e < EACH; e++) {
                let same = four == vec4<u32>(first + e);
                if (any(same) && first + e < E) {
                    for (var j = 0u; j < 4u; j++) {
                        if (same[j]) {
                            slots[next[e]] = start + 4u * i + j;
                            next[e]++;
                        }
                    }
                }
            }
        }
    }
}
