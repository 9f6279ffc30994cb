//# if WEIGHT in ("f32", "f16", "bf16")
//# include "lib/block_float.wgsl"
//# else
//# include "lib/block.wgsl"
//# endif
//# include "lib/" ~ WEIGHT ~ ".wgsl"
