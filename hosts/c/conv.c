/* conv.c: smears the one bright pixel of an image, over memory of this program. */
#include <advect.h>
#include <stdio.h>

static int failed(const char *what) {
    fprintf(stderr, "%s: %s\n", what, advect_last_error_message());
    return 1;
}

/* A view of an array, which advect reads and writes in place. Its tensor is destroyed by whoever made it. */
static advect_status lend(float *data, const uint64_t shape[4], advect_view *view) {
    advect_tensor *tensor; /* memory on a GPU comes from advect_tensor_new and advect_tensor_upload */
    size_t bytes = sizeof *data * shape[0] * shape[1] * shape[2] * shape[3];
    advect_status status = advect_tensor_from_host(data, bytes, ADVECT_F32, 4, shape, 0, &tensor);
    return status ? status : advect_tensor_view(tensor, view);
}

int main(void) {
    float image[5][7] = {[2][3] = 1}, smeared[5][7];
    float weights[3][3] = {{1, 2, 1}, {2, 4, 2}, {1, 2, 1}};
    advect_device *device; /* advect_device_list says which there are: wgpu:0, cuda:0, .. */
    advect_view x, weight, out;
    if (advect_device_open("cpu", NULL, &device)) return failed("device");
    if (lend(image[0], (uint64_t[]){1, 1, 5, 7}, &x)) return failed("image");
    if (lend(weights[0], (uint64_t[]){1, 1, 3, 3}, &weight)) return failed("weights");
    if (lend(smeared[0], (uint64_t[]){1, 1, 5, 7}, &out)) return failed("smeared");

    /* What is left out is 0: no bias, no residual, stride 1. */
    advect_conv_args args = {.struct_size = sizeof args, .x = &x, .weight = &weight, .out = &out};
    if (advect_conv(device, &args) == ADVECT_OK) return 1;
    printf("without padding: %s\n", advect_last_error_message());
    args.padding[0] = args.padding[1] = 1;
    if (advect_conv(device, &args)) return failed("conv");
    for (int i = 0; i < 5 * 7; i++) printf("%g%c", smeared[i / 7][i % 7], (i + 1) % 7 ? ' ' : '\n');

    advect_tensor *lent[] = {x.tensor, weight.tensor, out.tensor};
    for (int i = 0; i < 3; i++) advect_tensor_destroy(lent[i]);
    return advect_device_destroy(device);
}
