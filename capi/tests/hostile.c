/* hostile.c: a C program that does what it should not, from several threads, and expects errors and no crash.
 * tests/hosts.rs compiles it with every warning and runs it under the checkers that are there. They see what this
 * program does, and what goes through malloc and free. The library is not compiled for them: what it reads and writes
 * beside its operands is seen by pages that nobody may touch (fenced). */
#define _DEFAULT_SOURCE /* MAP_ANONYMOUS */
#include <advect.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static int failures;

#define EXPECT(wanted, call)                                                                                   \
    do {                                                                                                       \
        advect_status got_ = (call);                                                                           \
        if (got_ != (wanted)) {                                                                                \
            fprintf(stderr, "line %d: %s gave %s: %s\n", __LINE__, #call, advect_status_name(got_),             \
                    advect_last_error_message());                                                              \
            failures++;                                                                                        \
        }                                                                                                      \
    } while (0)
#define SAYS(text)                                                                                             \
    do {                                                                                                       \
        if (!strstr(advect_last_error_message(), text)) {                                                      \
            fprintf(stderr, "line %d: `%s` does not say `%s`\n", __LINE__, advect_last_error_message(), text);  \
            failures++;                                                                                        \
        }                                                                                                      \
    } while (0)

static advect_device *device;
static advect_tensor *contested[64];

static void *destroy_all(void *count) {
    for (int i = 0; i < 64; i++) {
        advect_status status = advect_tensor_destroy(contested[i]);
        if (status == ADVECT_OK) ++*(int *)count;
        else EXPECT(ADVECT_ERROR_HANDLE, status);
    }
    return NULL;
}

static void *own_message(void *argument) {
    unsigned tag = *(unsigned *)argument;
    char wanted[32];
    snprintf(wanted, sizeof wanted, "got %u", tag);
    for (int i = 0; i < 200; i++) {
        advect_tensor *tensor;
        uint64_t shape = 1;
        EXPECT(ADVECT_ERROR_ARGUMENT, advect_tensor_new(device, tag, 1, &shape, &tensor));
        SAYS(wanted);
    }
    return NULL;
}

/* How operands lie: their dtype, the page that they touch (after their end, before their start), and the elements
 * between the end of a row and the next row. */
static struct { advect_dtype dtype; int at_end; uint64_t gap; } how;
static struct { void *memory; size_t size; advect_view view; } operands[16];
static int operand_count;

/* An operand between two pages that nobody may touch. Its bytes are all 1, which are small numbers and a mask that
 * hides nothing, but where there are `values`. */
static advect_view *fenced(advect_dtype dtype, const int32_t *values, uint32_t rank, const uint64_t *shape) {
    uint64_t last = 0, step = 1, size = dtype == ADVECT_U8 ? 1 : dtype == ADVECT_F16 || dtype == ADVECT_BF16 ? 2 : 4;
    advect_view view = {.rank = rank, .dtype = dtype};
    for (uint32_t axis = rank; axis-- > 0;) {
        view.shape[axis] = shape[axis];
        view.strides[axis] = step;
        last += (shape[axis] - 1) * step;
        step = step * shape[axis] + (axis + 1 == rank && rank > 1 ? how.gap : 0);
    }
    uint64_t count = last + 1;
    size_t page = (size_t)sysconf(_SC_PAGESIZE), bytes = (size_t)(count * size);
    size_t inside = (bytes + page - 1) / page * page;
    char *memory = mmap(NULL, inside + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory + page, inside, PROT_READ | PROT_WRITE)) exit(3);
    char *data = memory + page + (how.at_end ? inside - bytes : 0);
    memset(data, 1, bytes);
    if (values) memcpy(data, values, bytes);
    EXPECT(ADVECT_OK, advect_tensor_from_host(data, bytes, dtype, 1, &count, 0, &view.tensor));
    operands[operand_count].memory = memory;
    operands[operand_count].size = inside + 2 * page;
    operands[operand_count].view = view;
    return &operands[operand_count++].view;
}
#define OF(dtype, values, ...)                                                                                 \
    fenced(dtype, values, sizeof((uint64_t[]){__VA_ARGS__}) / sizeof(uint64_t), (uint64_t[]){__VA_ARGS__})
#define A(...) OF(how.dtype, NULL, __VA_ARGS__)
#define F32(...) OF(ADVECT_F32, NULL, __VA_ARGS__)

/* Runs an op once over fresh operands. */
#define RUN(op, ...)                                                                                           \
    do {                                                                                                       \
        advect_##op##_args args_ = {.struct_size = sizeof args_, __VA_ARGS__};                                 \
        EXPECT(ADVECT_OK, advect_##op(device, &args_));                                                        \
        for (; operand_count; operand_count--) {                                                               \
            EXPECT(ADVECT_OK, advect_tensor_destroy(operands[operand_count - 1].view.tensor));                 \
            munmap(operands[operand_count - 1].memory, operands[operand_count - 1].size);                      \
        }                                                                                                      \
    } while (0)

/* Every op over fenced operands of `n` elements or so along the axis that kernels take several at a time of. */
static void every_op(uint64_t n) {
    int32_t lengths[2] = {1, (int32_t)n}, starts[3] = {0, 1, (int32_t)n}, pages[2] = {1, 0};
    RUN(matmul, .a = A(3, n, 5), .b = A(3, 5, n), .bias = A(n), .residual = A(3, n, n), .out = A(3, n, n));
    RUN(matmul, .a = A(2, n), .b = A(n, 3), .out = A(2, 3), .activation = ADVECT_ACTIVATION_GELU);
    RUN(conv, .x = A(2, 4, 3, n), .weight = A(6, 2, 3, 3), .bias = A(6), .sample_bias = A(2, 6),
        .residual = A(2, 6, 3, n), .out = A(2, 6, 3, n), .padding = {1, 1}, .groups = 2);
    RUN(conv, .x = A(1, n, 2, 3), .weight = A(n, n, 1, 1), .out = A(1, n, 2, 3));
    RUN(conv, .x = A(1, n, 5, 5), .weight = A(n, 1, 3, 3), .out = A(1, n, 2, 2), .stride = {2, 2},
        .groups = (uint32_t)n);
    RUN(norm, .x = A(2, 6, 2, n), .weight = A(6), .bias = A(6), .scale = A(2, 6), .shift = A(2, 6),
        .out = A(2, 6, 2, n), .kind = ADVECT_NORM_GROUP, .groups = 3, .eps = 1, .activation = ADVECT_ACTIVATION_SILU);
    RUN(norm, .x = A(2, 3, n), .weight = A(n), .bias = A(n), .out = A(2, 3, n), .kind = ADVECT_NORM_LAYER, .eps = 1);
    RUN(norm, .x = A(3, n), .weight = A(n), .out = A(3, n), .kind = ADVECT_NORM_RMS, .eps = 1);
    RUN(attention, .q = A(2, 2, n, 5), .k = A(2, 1, 7, 5), .v = A(2, 1, 7, n), .bias = A(2, 2, n, 7),
        .mask = OF(ADVECT_U8, NULL, 2, 2, n, 7), .q_lengths = OF(ADVECT_I32, lengths, 2), .slopes = F32(2, 2),
        .sinks = F32(2), .out = A(2, 2, n, n), .lse = F32(2, 2, n), .window = ADVECT_WINDOW_CAUSAL);
    RUN(attention, .q = A(1, 4, 1, n), .k = A(1, 2, n, n), .v = A(1, 2, n, 3), .bias = A(1, 4, 1, n),
        .out = A(1, 4, 1, 3));
    RUN(attention, .q = A(1, 2, n, n), .k = A(1, 2, n, n), .v = A(1, 2, n, n),
        .cu_seqlens_q = OF(ADVECT_I32, starts, 3), .cu_seqlens_k = OF(ADVECT_I32, starts, 3),
        .out = A(3, 1, 2, n, n), .lse = F32(3, 1, 2, n), .splits = 3);
    RUN(attention, .q = A(1, 2, 3, n), .k = A(2, 1, 5, n), .v = A(2, 1, 5, n), .out = A(1, 2, 3, n),
        .block_table = OF(ADVECT_I32, pages, 1, 2), .softcap = 3);
    RUN(merge, .parts = A(3, 1, 2, 5, n), .lses = F32(3, 1, 2, 5), .out = A(1, 2, 5, n), .lse = F32(1, 2, 5));
    RUN(linear_attention, .q = A(1, 2, n, 5), .k = A(1, 2, n, 5), .v = A(1, 2, n, n), .log_decay = F32(1, 2, n, 5),
        .beta = A(1, 2, n), .initial_state = F32(1, 2, 5, n), .out = A(1, 2, n, n), .final_state = F32(1, 2, 5, n),
        .causal = 1);
    RUN(linear_attention, .q = A(1, 2, 3, n), .k = A(1, 2, 7, n), .v = A(1, 2, 7, 5), .out = A(1, 2, 3, 5),
        .feature_map = ADVECT_FEATURE_MAP_ELU_PLUS_ONE, .normalize = 1);
    RUN(resample, .x = A(1, 2, 3, n), .out = A(1, 2, 6, 2 * n), .mode = ADVECT_RESAMPLE_UP2);
    RUN(resample, .x = A(1, 2, 3, 2 * n + 1), .out = A(1, 2, 1, n), .mode = ADVECT_RESAMPLE_DOWN2);
    RUN(step, .x = {A(3, n), A(3, n), A(3, n)}, .out = A(3, n), .coefficients = {1, 2, 3},
        .noise_coefficient = 1, .noise = 1);
    RUN(step, .x = {A(3, 2, n)}, .table = F32(3, 9), .out = A(3, 2, n), .noise = 1);
}

int main(void) {
    /* Before anything: no error, and its text is there. */
    if (*advect_last_error_message() || advect_last_error_message() == NULL) failures++;
    if (strcmp(advect_status_name(INT_MIN), "unknown status")) failures++;
    if (strcmp(advect_status_name(0), "ADVECT_OK")) failures++;
    EXPECT(ADVECT_OK, advect_device_open("cpu", NULL, &device));

    /* A struct of garbage, and structs cut off. */
    unsigned char garbage[sizeof(advect_step_args) + 16];
    memset(garbage, 0xa5, sizeof garbage);
    EXPECT(ADVECT_ERROR_ARGUMENT, advect_step(device, (advect_step_args *)(void *)garbage));
    advect_step_args *small = calloc(1, sizeof(size_t));
    small->struct_size = sizeof(size_t);
    EXPECT(ADVECT_ERROR_ARGUMENT, advect_step(device, small));
    SAYS("step: `args`: wanted struct_size");
    free(small);

    /* No op steps beyond its operands, before them, or into the gaps of the last row. */
    for (how.dtype = ADVECT_F32; how.dtype <= ADVECT_BF16; how.dtype++)
        for (how.at_end = 0; how.at_end < 2; how.at_end++)
            for (how.gap = 0; how.gap < 4; how.gap += 3)
                for (int i = 0; i < 8; i++) every_op((uint64_t[]){1, 3, 8, 13, 16, 31, 33, 65}[i]);

    /* Memory of the caller, exactly as large as needed, and views that reach beyond it. */
    uint64_t shape[2] = {3, 5};
    float *x = malloc(15 * sizeof *x), *y = malloc(15 * sizeof *y);
    for (int i = 0; i < 15; i++) x[i] = (float)i, y[i] = -1;
    advect_tensor *tx, *ty;
    EXPECT(ADVECT_OK, advect_tensor_from_host(x, 60, ADVECT_F32, 2, shape, ADVECT_READ_ONLY, &tx));
    EXPECT(ADVECT_OK, advect_tensor_from_host(y, 60, ADVECT_F32, 2, shape, 0, &ty));
    advect_view vx, vy;
    EXPECT(ADVECT_OK, advect_tensor_view(tx, &vx));
    EXPECT(ADVECT_OK, advect_tensor_view(ty, &vy));
    advect_step_args step = {.struct_size = sizeof step, .x = {&vx}, .out = &vy, .coefficients = {2}};
    EXPECT(ADVECT_OK, advect_step(device, &step));
    for (int i = 0; i < 15; i++) failures += y[i] != 2 * (float)i;
    vx.shape[0] = 4, vy.shape[0] = 4;
    EXPECT(ADVECT_ERROR_ARGUMENT, advect_step(device, &step));
    SAYS("inside the 15 of its memory");
    vx.shape[0] = 3, vy.shape[0] = 3;
    memset(vx.strides + 2, 0xff, 6 * sizeof(uint64_t)); /* past the rank: not read */
    EXPECT(ADVECT_OK, advect_step(device, &step));
    step.out = &vx;
    EXPECT(ADVECT_ERROR_ARGUMENT, advect_step(device, &step));
    SAYS("read-only");

    /* The view outlives its tensor, the tensor's number is used again, and the old view is told apart. */
    EXPECT(ADVECT_OK, advect_tensor_destroy(tx));
    EXPECT(ADVECT_ERROR_HANDLE, advect_tensor_destroy(tx));
    advect_tensor *again;
    EXPECT(ADVECT_OK, advect_tensor_new(device, ADVECT_F32, 2, shape, &again));
    if (again == tx) failures++;
    step.out = &vy;
    EXPECT(ADVECT_ERROR_HANDLE, advect_step(device, &step));
    SAYS("step: `x0`: wanted a tensor, got one that was destroyed");
    free(x);

    /* Handles of all the wrong kinds. */
    EXPECT(ADVECT_ERROR_HANDLE, advect_device_destroy((advect_device *)(void *)again));
    EXPECT(ADVECT_ERROR_HANDLE, advect_tensor_destroy((advect_tensor *)(void *)device));
    EXPECT(ADVECT_ERROR_HANDLE, advect_tensor_destroy((advect_tensor *)(void *)&step));
    for (uintptr_t bits = 1; bits; bits <<= 1)
        EXPECT(ADVECT_ERROR_HANDLE, advect_tensor_destroy((advect_tensor *)(bits ^ (uintptr_t)again)));

    /* A message is read after calls that succeed, and outlives them. */
    EXPECT(ADVECT_ERROR_HANDLE, advect_tensor_destroy(tx));
    const char *message = advect_last_error_message();
    EXPECT(ADVECT_OK, advect_device_synchronize(device));
    if (message != advect_last_error_message() || !strstr(message, "destroyed")) failures++;

    /* Sixty-four tensors destroyed by four threads: each once. Leaks are seen by the leak checker. */
    pthread_t threads[4];
    int counts[4] = {0};
    unsigned tags[4] = {100, 101, 102, 103};
    for (int i = 0; i < 64; i++) EXPECT(ADVECT_OK, advect_tensor_new(device, ADVECT_F16, 2, shape, &contested[i]));
    for (int i = 0; i < 4; i++) pthread_create(&threads[i], NULL, destroy_all, &counts[i]);
    for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
    if (counts[0] + counts[1] + counts[2] + counts[3] != 64) failures++;
    for (int i = 0; i < 4; i++) pthread_create(&threads[i], NULL, own_message, &tags[i]);
    for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);

    /* An export outlives everything that it came from. */
    DLManagedTensor *managed;
    advect_tensor *back;
    EXPECT(ADVECT_OK, advect_tensor_view(again, &vx));
    EXPECT(ADVECT_OK, advect_view_to_dlpack(&vx, &managed));
    EXPECT(ADVECT_OK, advect_tensor_destroy(again));
    EXPECT(ADVECT_OK, advect_device_destroy(device));
    EXPECT(ADVECT_ERROR_HANDLE, advect_tensor_from_dlpack(device, managed, &back));
    EXPECT(ADVECT_OK, advect_tensor_from_dlpack(NULL, managed, &back));
    EXPECT(ADVECT_OK, advect_tensor_download(back, y, 60));
    for (int i = 0; i < 15; i++) failures += y[i] != 0;
    EXPECT(ADVECT_OK, advect_tensor_destroy(back));
    EXPECT(ADVECT_OK, advect_tensor_destroy(ty));
    EXPECT(ADVECT_ERROR_HANDLE, advect_device_destroy(device));
    free(y);
    if (failures) fprintf(stderr, "%d expectations failed\n", failures);
    return failures != 0;
}
