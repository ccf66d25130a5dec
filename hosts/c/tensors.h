/* tensors.h: what a program with advect needs besides its network: a check of every call, and tensors by name. */
#pragma once
#include "weights.h"
#include <advect.h>

enum { KEPT = 256 };

static advect_device *device;
static weights_file model;
static uint64_t images;

static void check(advect_status status, int line) {
    if (status == ADVECT_OK) return;
    fprintf(stderr, "line %d: %s: %s\n", line, advect_status_name(status), advect_last_error_message());
    exit(1);
}
#define TRY(call) check((call), __LINE__)

/* Every tensor, to be destroyed at the end. Weights are found again by name; the activations of an evaluation
 * are asked for in the same order every time. */
static struct { advect_tensor *tensor; char name[48]; } weights[KEPT], activations[KEPT];
static int weight_count, activation_count, next_activation;

static advect_view whole(advect_tensor *tensor) {
    advect_view view;
    TRY(advect_tensor_view(tensor, &view));
    return view;
}
static advect_view weight(const char *layer, const char *kind) {
    char name[48];
    snprintf(name, sizeof name, "%s.%s", layer, kind);
    for (int i = 0; i < weight_count; i++)
        if (strcmp(weights[i].name, name) == 0) return whole(weights[i].tensor);
    weights_array array = weights_read(&model, name);
    memcpy(weights[weight_count].name, name, sizeof name);
    TRY(advect_tensor_new(device, ADVECT_F32, array.rank, array.shape, &weights[weight_count].tensor));
    TRY(advect_tensor_upload_f32(weights[weight_count].tensor, array.values, array.count));
    free(array.values);
    return whole(weights[weight_count++].tensor);
}
static advect_view activation(uint32_t rank, uint64_t c, uint64_t h, uint64_t w) {
    if (next_activation == activation_count)
        TRY(advect_tensor_new(device, ADVECT_F32, rank, (uint64_t[]){images, c, h, w},
                              &activations[activation_count++].tensor));
    return whole(activations[next_activation++].tensor);
}
static advect_view slice(advect_view view, uint64_t start, uint64_t end) {
    TRY(advect_view_slice(&view, 1, start, end));
    return view;
}
static advect_view reshape(advect_view view, uint32_t rank, uint64_t b, uint64_t c, uint64_t d) {
    TRY(advect_view_reshape(&view, rank, (uint64_t[]){view.shape[0], b, c, d}));
    return view;
}

static void tensors_close(void) {
    for (int i = 0; i < weight_count; i++) TRY(advect_tensor_destroy(weights[i].tensor));
    for (int i = 0; i < activation_count; i++) TRY(advect_tensor_destroy(activations[i].tensor));
    weights_close(&model);
}
