/* unet.h: the network of models/digits/README.md as calls of advect's ops. */
#pragma once
#include "tensors.h"

/* The name of a layer in a block; good until the fourth name after it. */
static const char *of(const char *block, const char *layer) {
    static char names[4][48];
    static int turn;
    snprintf(names[turn = (turn + 1) % 4], 48, "%s.%s", block, layer);
    return names[turn];
}
static advect_view conv(const char *name, advect_view x, uint32_t stride, const advect_view *residual,
                        const advect_view *into) {
    advect_view w = weight(name, "weight"), bias = weight(name, "bias");
    advect_view out = into ? *into : activation(4, w.shape[0], x.shape[2] / stride, x.shape[3] / stride);
    uint32_t padding = (uint32_t)w.shape[2] / 2;
    TRY(advect_conv(device, &(advect_conv_args){.struct_size = sizeof(advect_conv_args), .x = &x, .weight = &w,
        .bias = &bias, .residual = residual, .out = &out, .stride = {stride, stride},
        .padding = {padding, padding}}));
    return out;
}
static advect_view norm(const char *name, advect_view x, uint32_t act, const advect_view *film) {
    advect_view w = weight(name, "weight"), bias = weight(name, "bias"), scale, shift;
    advect_view out = activation(4, x.shape[1], x.shape[2], x.shape[3]);
    if (film) scale = slice(*film, 0, x.shape[1]), shift = slice(*film, x.shape[1], 2 * x.shape[1]);
    TRY(advect_norm(device, &(advect_norm_args){.struct_size = sizeof(advect_norm_args), .x = &x, .weight = &w,
        .bias = &bias, .scale = film ? &scale : NULL, .shift = film ? &shift : NULL, .out = &out,
        .kind = ADVECT_NORM_GROUP, .groups = 8, .eps = 1e-5f, .activation = act}));
    return out;
}
static advect_view linear(const char *name, advect_view x, uint32_t act) {
    advect_view w = weight(name, "weight"), bias = weight(name, "bias"), out = activation(2, w.shape[0], 0, 0);
    TRY(advect_view_permute(&w, (uint32_t[]){1, 0}, 2));
    TRY(advect_matmul(device, &(advect_matmul_args){.struct_size = sizeof(advect_matmul_args), .a = &x, .b = &w,
        .bias = &bias, .out = &out, .activation = act}));
    return out;
}
static advect_view residual_block(const char *b, advect_view x, advect_view e, const advect_view *into) {
    advect_view normed = norm(of(b, "norm1"), x, ADVECT_ACTIVATION_SILU, NULL);
    advect_view h = conv(of(b, "conv1"), normed, 1, NULL, NULL);
    advect_view film = linear(of(b, "film"), e, ADVECT_ACTIVATION_NONE);
    advect_view skip = h.shape[1] == x.shape[1] ? x : conv(of(b, "skip"), x, 1, NULL, NULL);
    normed = norm(of(b, "norm2"), h, ADVECT_ACTIVATION_SILU, &film);
    return conv(of(b, "conv2"), normed, 1, &skip, into);
}
static advect_view heads(advect_view tokens, uint64_t from, uint64_t channels) { /* [n, head, token, 32] */
    advect_view view = slice(tokens, from, from + channels);
    TRY(advect_view_split(&view, 1, channels / 32));
    TRY(advect_view_permute(&view, (uint32_t[]){0, 1, 3, 2}, 4));
    return view;
}
static advect_view attention_block(const char *b, advect_view x, const advect_view *into) {
    uint64_t c = x.shape[1], pixels = x.shape[2] * x.shape[3];
    advect_view normed = norm(of(b, "norm"), x, ADVECT_ACTIVATION_NONE, NULL);
    advect_view qkv = conv(of(b, "qkv"), normed, 1, NULL, NULL);
    advect_view out = activation(4, c, x.shape[2], x.shape[3]), packed = reshape(qkv, 3, 3 * c, pixels, 0);
    advect_view q = heads(packed, 0, c), k = heads(packed, c, c), v = heads(packed, 2 * c, c);
    advect_view o = heads(reshape(out, 3, c, pixels, 0), 0, c);
    TRY(advect_attention(device, &(advect_attention_args){.struct_size = sizeof(advect_attention_args), .q = &q,
        .k = &k, .v = &v, .out = &o}));
    return conv(of(b, "proj"), out, 1, &x, into);
}
static advect_view up(const char *name, advect_view x, const advect_view *into) {
    advect_view out = activation(4, x.shape[1], 2 * x.shape[2], 2 * x.shape[3]);
    TRY(advect_resample(device, &(advect_resample_args){.struct_size = sizeof(advect_resample_args), .x = &x,
        .out = &out, .mode = ADVECT_RESAMPLE_UP2}));
    return conv(name, out, 1, NULL, into);
}

/* Writes v(t, x, y) over `v`; `classes` holds a row of the class embedding for each image. */
static void velocity(double t, advect_view x, advect_view classes, advect_view v) {
    float waves[64];
    for (int i = 0; i < 64; i++) waves[i] = (float)(i < 32 ? cos : sin)(100 * t * pow(1000, -(i % 32) / 32.0));
    next_activation = 0;
    advect_view time = activation(2, 64, 0, 0), embedding = activation(4, 128, 1, 1);
    float *rows = malloc(images * sizeof waves);
    for (uint64_t i = 0; rows && i < images; i++) memcpy(rows + 64 * i, waves, sizeof waves);
    TRY(advect_tensor_upload_f32(time.tensor, rows, images * 64));
    free(rows);
    advect_view units = reshape(linear("time_mlp.0", time, ADVECT_ACTIVATION_SILU), 4, 128, 1, 1);
    advect_view w = reshape(weight("time_mlp.1", "weight"), 4, 128, 1, 1), bias = weight("time_mlp.1", "bias");
    TRY(advect_conv(device, &(advect_conv_args){.struct_size = sizeof(advect_conv_args), .x = &units, .weight = &w,
        .bias = &bias, .sample_bias = &classes, .out = &embedding, .activation = ADVECT_ACTIVATION_SILU}));
    advect_view e = reshape(embedding, 2, 128, 0, 0);

    /* What a level leaves on the way down lies beside what comes up to it: one concatenation a level. */
    advect_view concat0 = activation(4, 32, 28, 28), concat1 = activation(4, 64, 14, 14);
    advect_view concat2 = activation(4, 192, 7, 7);
    advect_view rise0 = slice(concat0, 0, 16), rise1 = slice(concat1, 0, 32), rise2 = slice(concat2, 0, 96);
    advect_view skip0 = slice(concat0, 16, 32), skip1 = slice(concat1, 32, 64), skip2 = slice(concat2, 96, 192);
    residual_block("down.0.res", conv("conv_in", x, 1, NULL, NULL), e, &skip0);
    advect_view h = residual_block("down.1.res", conv("down.0.down", skip0, 2, NULL, NULL), e, NULL);
    attention_block("down.1.attn", h, &skip1);
    residual_block("down.2.res", conv("down.1.down", skip1, 2, NULL, NULL), e, &skip2);
    h = attention_block("mid.attn", residual_block("mid.res0", skip2, e, NULL), NULL);
    residual_block("mid.res1", h, e, &rise2);
    up("up.2.up", residual_block("up.2.res", concat2, e, NULL), &rise1);
    up("up.1.up", attention_block("up.1.attn", residual_block("up.1.res", concat1, e, NULL), NULL), &rise0);
    h = residual_block("up.0.res", concat0, e, NULL);
    conv("conv_out", norm("norm_out", h, ADVECT_ACTIVATION_SILU, NULL), 1, NULL, &v);
}
