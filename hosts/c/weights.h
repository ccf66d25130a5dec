/* weights.h: a reader of safetensors files, as far as the digits need one: f32, f16 and i32, all as float. */
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    char *header;        /* JSON, ended by a zero */
    unsigned char *data; /* what the header's offsets count from */
    size_t size;
} weights_file;

typedef struct {
    uint32_t rank;
    uint64_t shape[4];
    size_t count;
    float *values; /* to be freed */
} weights_array;

static void weights_die(const char *what, const char *name) {
    fprintf(stderr, "%s: %s\n", name, what);
    exit(1);
}

/* Opens <folder>/<name>. */
static weights_file weights_open(const char *folder, const char *name) {
    weights_file file = {0};
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *in = fopen(path, "rb");
    unsigned char length[8];
    if (!in || fread(length, 1, 8, in) != 8) weights_die("cannot be read", path);
    size_t header = 0;
    for (int i = 7; i >= 0; i--) header = header << 8 | length[i];
    if (header > 1 << 20 || !(file.header = calloc(header + 1, 1)) || fread(file.header, 1, header, in) != header)
        weights_die("has no header", path);
    size_t room = 1 << 16, got;
    do {
        if (!(file.data = realloc(file.data, room *= 2))) weights_die("does not fit into memory", path);
        file.size += got = fread(file.data + file.size, 1, room - file.size, in);
    } while (got);
    fclose(in);
    return file;
}

static float weights_half(unsigned bits) {
    int exponent = (int)(bits >> 10 & 31), mantissa = (int)(bits & 1023);
    float value = exponent ? ldexpf((float)(mantissa | 1024), exponent - 25) : ldexpf((float)mantissa, -24);
    return bits >> 15 ? -value : value;
}

/* The array called `name`. */
static weights_array weights_read(const weights_file *file, const char *name) {
    weights_array array = {.count = 1};
    char key[256];
    snprintf(key, sizeof key, "\"%s\":{", name);
    const char *entry = strstr(file->header, key);
    const char *dtype = entry ? strstr(entry, "\"dtype\":\"") : NULL;
    const char *shape = entry ? strstr(entry, "\"shape\":[") : NULL;
    const char *offsets = entry ? strstr(entry, "\"data_offsets\":[") : NULL;
    if (!dtype || !shape || !offsets) weights_die("is not in the file", name);
    char *at = (char *)(uintptr_t)shape + strlen("\"shape\":[");
    for (; *at != ']' && array.rank < 4; at += *at == ',') {
        array.shape[array.rank] = strtoull(at, &at, 10);
        array.count *= (size_t)array.shape[array.rank++];
    }
    size_t from = (size_t)strtoull(offsets + strlen("\"data_offsets\":["), NULL, 10);
    int half = strncmp(dtype + 9, "F16", 3) == 0, integer = strncmp(dtype + 9, "I32", 3) == 0;
    size_t size = half ? 2 : 4;
    if (from > file->size || array.count > (file->size - from) / size) weights_die("is cut off", name);
    array.values = malloc(array.count * sizeof(float) + 1);
    if (!array.values) weights_die("does not fit into memory", name);
    for (size_t i = 0; i < array.count; i++) {
        const unsigned char *b = file->data + from + i * size;
        uint32_t bits = b[0] | (uint32_t)b[1] << 8;
        if (!half) bits |= (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
        if (half) array.values[i] = weights_half(bits);
        else if (integer) array.values[i] = (float)(int32_t)bits;
        else memcpy(&array.values[i], &bits, 4);
    }
    return array;
}

static void weights_close(weights_file *file) {
    free(file->header);
    free(file->data);
}
