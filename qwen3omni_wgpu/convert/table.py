"""The table of all tensors: the name and shape each has in a Hugging Face checkpoint, and where it goes in GGUF.

One row a pattern:  Hugging Face name | GGUF name | Hugging Face shape [| GGUF shape, where it differs | how it is made]

A small letter in braces runs over a count, a capital one stands for a size (`dims.py` has both):
  {i} layers L   {e} experts E   {g} code groups G   {t} deepstack taps TAPS   {u} upsampling stages U
  {b} decoder blocks B   {r} residual units R   {r+2} the same, counted from 2   {TAP} vision block of tap {t}
What {e} and {g} number in the checkpoint is stacked in GGUF: 128 tensors [F, D] become one [128, F, D].
GGUF names are llama.cpp's: `qwen3vlmoe` for the thinker, `clip` for both towers, `qwen2moe` and the audio generation
names of `clip` for the talker. Values are those of the checkpoint: in Code2Wav alpha and beta stay logarithms
(llama.cpp folds them for the same names) and transposed convolutions stay [in, out, kernel].
"""

# Component -> its rows, in the order in which the tensors lie in the file.
TABLE = {
    "thinker_text": """
thinker.model.embed_tokens.weight                         | token_embd.weight             | V D
thinker.model.layers.{i}.input_layernorm.weight           | blk.{i}.attn_norm.weight      | D
thinker.model.layers.{i}.self_attn.q_proj.weight          | blk.{i}.attn_q.weight         | Q D
thinker.model.layers.{i}.self_attn.k_proj.weight          | blk.{i}.attn_k.weight         | KV D
thinker.model.layers.{i}.self_attn.v_proj.weight          | blk.{i}.attn_v.weight         | KV D
thinker.model.layers.{i}.self_attn.q_norm.weight          | blk.{i}.attn_q_norm.weight    | HD
thinker.model.layers.{i}.self_attn.k_norm.weight          | blk.{i}.attn_k_norm.weight    | HD
thinker.model.layers.{i}.self_attn.o_proj.weight          | blk.{i}.attn_output.weight    | D Q
thinker.model.layers.{i}.post_attention_layernorm.weight  | blk.{i}.ffn_norm.weight       | D
thinker.model.layers.{i}.mlp.gate.weight                  | blk.{i}.ffn_gate_inp.weight   | E D
thinker.model.layers.{i}.mlp.experts.{e}.gate_proj.weight | blk.{i}.ffn_gate_exps.weight  | F D
thinker.model.layers.{i}.mlp.experts.{e}.up_proj.weight   | blk.{i}.ffn_up_exps.weight    | F D
thinker.model.layers.{i}.mlp.experts.{e}.down_proj.weight | blk.{i}.ffn_down_exps.weight  | D F
thinker.model.norm.weight                                 | output_norm.weight            | D
thinker.lm_head.weight                                    | output.weight                 | V D
""",
    # The sinusoids are in no checkpoint, but llama.cpp reads them from the file, and a convolution's bias as [C, 1, 1].
    "audio_encoder": """
thinker.audio_tower.conv2d1.weight                         | a.conv2d.1.weight       | C 1 3 3
thinker.audio_tower.conv2d1.bias                           | a.conv2d.1.bias         | C | C 1 1
thinker.audio_tower.conv2d2.weight                         | a.conv2d.2.weight       | C C 3 3
thinker.audio_tower.conv2d2.bias                           | a.conv2d.2.bias         | C | C 1 1
thinker.audio_tower.conv2d3.weight                         | a.conv2d.3.weight       | C C 3 3
thinker.audio_tower.conv2d3.bias                           | a.conv2d.3.bias         | C | C 1 1
thinker.audio_tower.conv_out.weight                        | a.conv_out.weight       | D CM
-                                                          | a.position_embd.weight  | - | POS D | sinusoids
thinker.audio_tower.layers.{i}.self_attn_layer_norm.weight | a.blk.{i}.ln1.weight    | D
thinker.audio_tower.layers.{i}.self_attn_layer_norm.bias   | a.blk.{i}.ln1.bias      | D
thinker.audio_tower.layers.{i}.self_attn.q_proj.weight     | a.blk.{i}.attn_q.weight | D D
thinker.audio_tower.layers.{i}.self_attn.q_proj.bias       | a.blk.{i}.attn_q.bias   | D
thinker.audio_tower.layers.{i}.self_attn.k_proj.weight     | a.blk.{i}.attn_k.weight | D D
thinker.audio_tower.layers.{i}.self_attn.k_proj.bias       | a.blk.{i}.attn_k.bias   | D
thinker.audio_tower.layers.{i}.self_attn.v_proj.weight     | a.blk.{i}.attn_v.weight | D D
thinker.audio_tower.layers.{i}.self_attn.v_proj.bias       | a.blk.{i}.attn_v.bias   | D
thinker.audio_tower.layers.{i}.self_attn.out_proj.weight   | a.blk.{i}.attn_out.weight | D D
thinker.audio_tower.layers.{i}.self_attn.out_proj.bias     | a.blk.{i}.attn_out.bias | D
thinker.audio_tower.layers.{i}.final_layer_norm.weight     | a.blk.{i}.ln2.weight    | D
thinker.audio_tower.layers.{i}.final_layer_norm.bias       | a.blk.{i}.ln2.bias      | D
thinker.audio_tower.layers.{i}.fc1.weight                  | a.blk.{i}.ffn_up.weight | F D
thinker.audio_tower.layers.{i}.fc1.bias                    | a.blk.{i}.ffn_up.bias   | F
thinker.audio_tower.layers.{i}.fc2.weight                  | a.blk.{i}.ffn_down.weight | D F
thinker.audio_tower.layers.{i}.fc2.bias                    | a.blk.{i}.ffn_down.bias | D
thinker.audio_tower.ln_post.weight                         | a.post_ln.weight        | D
thinker.audio_tower.ln_post.bias                           | a.post_ln.bias          | D
thinker.audio_tower.proj1.weight                           | mm.a.mlp.1.weight       | D D
thinker.audio_tower.proj1.bias                             | mm.a.mlp.1.bias         | D
thinker.audio_tower.proj2.weight                           | mm.a.mlp.2.weight       | O D
thinker.audio_tower.proj2.bias                             | mm.a.mlp.2.bias         | O
""",
    # The 3-D patch kernel is two 2-D ones in GGUF, one a frame. Taps are numbered by the block they follow.
    "vision_encoder": """
thinker.visual.patch_embed.proj.weight           | v.patch_embd.weight         | D IN T P P | D IN P P | frame0
thinker.visual.patch_embed.proj.weight           | v.patch_embd.weight.1       | D IN T P P | D IN P P | frame1
thinker.visual.patch_embed.proj.bias             | v.patch_embd.bias           | D
thinker.visual.pos_embed.weight                  | v.position_embd.weight      | POS D
thinker.visual.blocks.{i}.norm1.weight           | v.blk.{i}.ln1.weight        | D
thinker.visual.blocks.{i}.norm1.bias             | v.blk.{i}.ln1.bias          | D
thinker.visual.blocks.{i}.attn.qkv.weight        | v.blk.{i}.attn_qkv.weight   | QKV D
thinker.visual.blocks.{i}.attn.qkv.bias          | v.blk.{i}.attn_qkv.bias     | QKV
thinker.visual.blocks.{i}.attn.proj.weight       | v.blk.{i}.attn_out.weight   | D D
thinker.visual.blocks.{i}.attn.proj.bias         | v.blk.{i}.attn_out.bias     | D
thinker.visual.blocks.{i}.norm2.weight           | v.blk.{i}.ln2.weight        | D
thinker.visual.blocks.{i}.norm2.bias             | v.blk.{i}.ln2.bias          | D
thinker.visual.blocks.{i}.mlp.linear_fc1.weight  | v.blk.{i}.ffn_up.weight     | F D
thinker.visual.blocks.{i}.mlp.linear_fc1.bias    | v.blk.{i}.ffn_up.bias       | F
thinker.visual.blocks.{i}.mlp.linear_fc2.weight  | v.blk.{i}.ffn_down.weight   | D F
thinker.visual.blocks.{i}.mlp.linear_fc2.bias    | v.blk.{i}.ffn_down.bias     | D
thinker.visual.merger_list.{t}.ln_q.weight       | v.deepstack.{TAP}.norm.weight | M
thinker.visual.merger_list.{t}.ln_q.bias         | v.deepstack.{TAP}.norm.bias | M
thinker.visual.merger_list.{t}.mlp.0.weight      | v.deepstack.{TAP}.fc1.weight | M M
thinker.visual.merger_list.{t}.mlp.0.bias        | v.deepstack.{TAP}.fc1.bias  | M
thinker.visual.merger_list.{t}.mlp.2.weight      | v.deepstack.{TAP}.fc2.weight | O M
thinker.visual.merger_list.{t}.mlp.2.bias        | v.deepstack.{TAP}.fc2.bias  | O
thinker.visual.merger.ln_q.weight                | v.post_ln.weight            | D
thinker.visual.merger.ln_q.bias                  | v.post_ln.bias              | D
thinker.visual.merger.mlp.0.weight               | mm.0.weight                 | M M
thinker.visual.merger.mlp.0.bias                 | mm.0.bias                   | M
thinker.visual.merger.mlp.2.weight               | mm.2.weight                 | O M
thinker.visual.merger.mlp.2.bias                 | mm.2.bias                   | O
""",
    "talker": """
talker.model.codec_embedding.weight                       | token_embd.weight                 | V D
talker.text_projection.linear_fc1.weight                  | text_proj.fc1.weight              | P TD
talker.text_projection.linear_fc1.bias                    | text_proj.fc1.bias                | P
talker.text_projection.linear_fc2.weight                  | text_proj.fc2.weight              | D P
talker.text_projection.linear_fc2.bias                    | text_proj.fc2.bias                | D
talker.hidden_projection.linear_fc1.weight                | hidden_proj.fc1.weight            | P TD
talker.hidden_projection.linear_fc1.bias                  | hidden_proj.fc1.bias              | P
talker.hidden_projection.linear_fc2.weight                | hidden_proj.fc2.weight            | D P
talker.hidden_projection.linear_fc2.bias                  | hidden_proj.fc2.bias              | D
talker.model.layers.{i}.input_layernorm.weight            | blk.{i}.attn_norm.weight          | D
talker.model.layers.{i}.self_attn.q_proj.weight           | blk.{i}.attn_q.weight             | Q D
talker.model.layers.{i}.self_attn.k_proj.weight           | blk.{i}.attn_k.weight             | KV D
talker.model.layers.{i}.self_attn.v_proj.weight           | blk.{i}.attn_v.weight             | KV D
talker.model.layers.{i}.self_attn.q_norm.weight           | blk.{i}.attn_q_norm.weight        | HD
talker.model.layers.{i}.self_attn.k_norm.weight           | blk.{i}.attn_k_norm.weight        | HD
talker.model.layers.{i}.self_attn.o_proj.weight           | blk.{i}.attn_output.weight        | D Q
talker.model.layers.{i}.post_attention_layernorm.weight   | blk.{i}.ffn_norm.weight           | D
talker.model.layers.{i}.mlp.gate.weight                   | blk.{i}.ffn_gate_inp.weight       | E D
talker.model.layers.{i}.mlp.experts.{e}.gate_proj.weight  | blk.{i}.ffn_gate_exps.weight      | F D
talker.model.layers.{i}.mlp.experts.{e}.up_proj.weight    | blk.{i}.ffn_up_exps.weight        | F D
talker.model.layers.{i}.mlp.experts.{e}.down_proj.weight  | blk.{i}.ffn_down_exps.weight      | D F
talker.model.layers.{i}.mlp.shared_expert_gate.weight     | blk.{i}.ffn_gate_inp_shexp.weight | 1 D
talker.model.layers.{i}.mlp.shared_expert.gate_proj.weight | blk.{i}.ffn_gate_shexp.weight     | S D
talker.model.layers.{i}.mlp.shared_expert.up_proj.weight  | blk.{i}.ffn_up_shexp.weight       | S D
talker.model.layers.{i}.mlp.shared_expert.down_proj.weight | blk.{i}.ffn_down_shexp.weight     | D S
talker.model.norm.weight                                  | output_norm.weight                | D
talker.codec_head.weight                                  | output.weight                     | V D
""",
    "code_predictor": """
talker.code_predictor.model.codec_embedding.{g}.weight                 | a.gen.code.embd.weight                | V D
talker.code_predictor.model.layers.{i}.input_layernorm.weight          | a.gen.code.blk.{i}.ln1.weight         | D
talker.code_predictor.model.layers.{i}.self_attn.q_proj.weight         | a.gen.code.blk.{i}.attn_q.weight      | Q D
talker.code_predictor.model.layers.{i}.self_attn.k_proj.weight         | a.gen.code.blk.{i}.attn_k.weight      | KV D
talker.code_predictor.model.layers.{i}.self_attn.v_proj.weight         | a.gen.code.blk.{i}.attn_v.weight      | KV D
talker.code_predictor.model.layers.{i}.self_attn.q_norm.weight         | a.gen.code.blk.{i}.attn_q_norm.weight | HD
talker.code_predictor.model.layers.{i}.self_attn.k_norm.weight         | a.gen.code.blk.{i}.attn_k_norm.weight | HD
talker.code_predictor.model.layers.{i}.self_attn.o_proj.weight         | a.gen.code.blk.{i}.attn_out.weight    | D Q
talker.code_predictor.model.layers.{i}.post_attention_layernorm.weight | a.gen.code.blk.{i}.ln2.weight         | D
talker.code_predictor.model.layers.{i}.mlp.gate_proj.weight            | a.gen.code.blk.{i}.ffn_gate.weight    | F D
talker.code_predictor.model.layers.{i}.mlp.up_proj.weight              | a.gen.code.blk.{i}.ffn_up.weight      | F D
talker.code_predictor.model.layers.{i}.mlp.down_proj.weight            | a.gen.code.blk.{i}.ffn_down.weight    | D F
talker.code_predictor.model.norm.weight                                | a.gen.code.output_norm.weight         | D
talker.code_predictor.lm_head.{g}.weight                               | a.gen.code.head.weight                | V D
""",
    "code2wav": """
code2wav.code_embedding.weight                                 | a.gen.wav.embd.weight                      | CODES D
code2wav.pre_transformer.layers.{i}.input_layernorm.weight     | a.gen.wav.tfm.blk.{i}.ln1.weight           | D
code2wav.pre_transformer.layers.{i}.self_attn.q_proj.weight    | a.gen.wav.tfm.blk.{i}.attn_q.weight        | Q D
code2wav.pre_transformer.layers.{i}.self_attn.k_proj.weight    | a.gen.wav.tfm.blk.{i}.attn_k.weight        | KV D
code2wav.pre_transformer.layers.{i}.self_attn.v_proj.weight    | a.gen.wav.tfm.blk.{i}.attn_v.weight        | KV D
code2wav.pre_transformer.layers.{i}.self_attn.o_proj.weight    | a.gen.wav.tfm.blk.{i}.attn_out.weight      | D Q
code2wav.pre_transformer.layers.{i}.self_attn_layer_scale.scale | a.gen.wav.tfm.blk.{i}.ls1.weight           | D
code2wav.pre_transformer.layers.{i}.post_attention_layernorm.weight | a.gen.wav.tfm.blk.{i}.ln2.weight           | D
code2wav.pre_transformer.layers.{i}.mlp.gate_proj.weight       | a.gen.wav.tfm.blk.{i}.ffn_gate.weight      | F D
code2wav.pre_transformer.layers.{i}.mlp.up_proj.weight         | a.gen.wav.tfm.blk.{i}.ffn_up.weight        | F D
code2wav.pre_transformer.layers.{i}.mlp.down_proj.weight       | a.gen.wav.tfm.blk.{i}.ffn_down.weight      | D F
code2wav.pre_transformer.layers.{i}.mlp_layer_scale.scale      | a.gen.wav.tfm.blk.{i}.ls2.weight           | D
code2wav.pre_transformer.norm.weight                           | a.gen.wav.tfm.output_norm.weight           | D
code2wav.upsample.{u}.0.conv.weight                            | a.gen.wav.up.blk.{u}.conv.weight           | D D UK
code2wav.upsample.{u}.0.conv.bias                              | a.gen.wav.up.blk.{u}.conv.bias             | D
code2wav.upsample.{u}.1.dwconv.conv.weight                     | a.gen.wav.up.blk.{u}.dwconv.weight         | D 1 7
code2wav.upsample.{u}.1.dwconv.conv.bias                       | a.gen.wav.up.blk.{u}.dwconv.bias           | D
code2wav.upsample.{u}.1.norm.weight                            | a.gen.wav.up.blk.{u}.norm.weight           | D
code2wav.upsample.{u}.1.norm.bias                              | a.gen.wav.up.blk.{u}.norm.bias             | D
code2wav.upsample.{u}.1.pwconv1.weight                         | a.gen.wav.up.blk.{u}.pw1.weight            | D4 D
code2wav.upsample.{u}.1.pwconv1.bias                           | a.gen.wav.up.blk.{u}.pw1.bias              | D4
code2wav.upsample.{u}.1.pwconv2.weight                         | a.gen.wav.up.blk.{u}.pw2.weight            | D D4
code2wav.upsample.{u}.1.pwconv2.bias                           | a.gen.wav.up.blk.{u}.pw2.bias              | D
code2wav.upsample.{u}.1.gamma                                  | a.gen.wav.up.blk.{u}.gamma                 | D
code2wav.decoder.0.conv.weight                                 | a.gen.wav.dac.entry.weight                 | W D 7
code2wav.decoder.0.conv.bias                                   | a.gen.wav.dac.entry.bias                   | W
code2wav.decoder.{b+1}.block.0.alpha                           | a.gen.wav.dac.blk.{b}.snake.alpha          | BI
code2wav.decoder.{b+1}.block.0.beta                            | a.gen.wav.dac.blk.{b}.snake.beta           | BI
code2wav.decoder.{b+1}.block.1.conv.weight                     | a.gen.wav.dac.blk.{b}.conv.weight          | BI BO BK
code2wav.decoder.{b+1}.block.1.conv.bias                       | a.gen.wav.dac.blk.{b}.conv.bias            | BO
code2wav.decoder.{b+1}.block.{r+2}.act1.alpha                  | a.gen.wav.dac.blk.{b}.res.{r}.act1.alpha   | BO
code2wav.decoder.{b+1}.block.{r+2}.act1.beta                   | a.gen.wav.dac.blk.{b}.res.{r}.act1.beta    | BO
code2wav.decoder.{b+1}.block.{r+2}.conv1.conv.weight           | a.gen.wav.dac.blk.{b}.res.{r}.conv1.weight | BO BO 7
code2wav.decoder.{b+1}.block.{r+2}.conv1.conv.bias             | a.gen.wav.dac.blk.{b}.res.{r}.conv1.bias   | BO
code2wav.decoder.{b+1}.block.{r+2}.act2.alpha                  | a.gen.wav.dac.blk.{b}.res.{r}.act2.alpha   | BO
code2wav.decoder.{b+1}.block.{r+2}.act2.beta                   | a.gen.wav.dac.blk.{b}.res.{r}.act2.beta    | BO
code2wav.decoder.{b+1}.block.{r+2}.conv2.conv.weight           | a.gen.wav.dac.blk.{b}.res.{r}.conv2.weight | BO BO 1
code2wav.decoder.{b+1}.block.{r+2}.conv2.conv.bias             | a.gen.wav.dac.blk.{b}.res.{r}.conv2.bias   | BO
code2wav.decoder.{B+1}.alpha                                   | a.gen.wav.dac.post_snake.alpha             | WO
code2wav.decoder.{B+1}.beta                                    | a.gen.wav.dac.post_snake.beta              | WO
code2wav.decoder.{B+2}.conv.weight                             | a.gen.wav.dac.post_conv.weight             | 1 WO 7
code2wav.decoder.{B+2}.conv.bias                               | a.gen.wav.dac.post_conv.bias               | 1
""",
}

# Plain text models have the thinker's names without its prefix; a dense one has these instead of router and experts.
DENSE = """
model.layers.{i}.mlp.gate_proj.weight                      | blk.{i}.ffn_gate.weight        | F D
model.layers.{i}.mlp.up_proj.weight                        | blk.{i}.ffn_up.weight          | F D
model.layers.{i}.mlp.down_proj.weight                      | blk.{i}.ffn_down.weight        | D F
"""
