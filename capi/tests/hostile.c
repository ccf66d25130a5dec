/* hostile.c: a C program that does what it should not, from several threads, and expects errors and no crash.
 * tests/hosts.rs compiles it with every warning and runs it under the checkers that are there. */
#include <advect.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

    /* Memory of the caller, exactly as large as needed: a step beyond it is seen by the address checker. */
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
