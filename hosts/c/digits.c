/* digits.c: draws digits with advect from C, and compares them with the golden samples of the checkout.
 *
 *     digits <checkout> <device> <images, up to 16> <samples> [<picture.pgm>]
 *
 * <samples> are those to compare with: euler10.cond, heun10.cfg1.5 (guided), ..: models/digits/README.md.
 *
 * The solver asks when to evaluate the network (unet.h) and what to sum; this program owns all memory. */
#include "unet.h"

enum { SIDE = 28, PIXELS = SIDE * SIDE, STEPS = 10, CLASSES = 10 };

/* The class embedding of each label, a row an image. */
static advect_tensor *class_rows(const float *labels) {
    weights_array table = weights_read(&model, "class_emb.weight");
    float *rows = malloc(images * 128 * sizeof *rows);
    if (!rows) weights_die("no memory", "class_emb");
    for (uint64_t i = 0; i < images; i++)
        memcpy(rows + 128 * i, table.values + 128 * (int)(labels ? labels[i] : CLASSES), 128 * sizeof *rows);
    advect_tensor *tensor;
    TRY(advect_tensor_new(device, ADVECT_F32, 2, (uint64_t[]){images, 128}, &tensor));
    TRY(advect_tensor_upload_f32(tensor, rows, images * 128));
    free(rows);
    free(table.values);
    return tensor;
}

/* Draws what the golden samples of this name were drawn from; gives the largest difference from them. */
static double sample(const char *name, const weights_file *golden, float *drawn) {
    static const char *const methods[] = {"", "euler", "midpoint", "heun", "rk4"}; /* ADVECT_METHOD_* from 1 on */
    uint32_t method = 4, guided = strstr(name, ".cfg1.5") != NULL;
    while (method && strncmp(name, methods[method], strlen(methods[method])) != 0) method--;
    weights_array noise = weights_read(golden, "x0"), labels = weights_read(golden, "labels");
    weights_array wanted = weights_read(golden, name);
    advect_tensor *classes = class_rows(labels.values), *no_class = class_rows(NULL);

    advect_solver *solver;
    advect_solver_options options = {.struct_size = sizeof options, .method = method, .steps = STEPS,
                                     .guided = guided, .guidance_scale = guided ? 1.5 : 0};
    TRY(advect_solver_new(&options, &solver));
    advect_solver_info info = {.struct_size = sizeof info};
    TRY(advect_solver_describe(solver, &info));
    enum { MOST = 16 };
    advect_tensor *memory[2 * MOST];
    advect_view states[MOST], slopes[MOST];
    uint32_t state_count = info.states, slope_count = info.stages * info.branches;
    for (uint32_t i = 0; i < state_count + slope_count; i++) {
        TRY(advect_tensor_new(device, ADVECT_F32, 4, (uint64_t[]){images, 1, SIDE, SIDE}, &memory[i]));
        *(i < state_count ? &states[i] : &slopes[i - state_count]) = whole(memory[i]);
    }

    TRY(advect_tensor_upload_f32(states[0].tensor, noise.values, images * PIXELS));
    advect_ask ask = {.struct_size = sizeof ask};
    for (;;) {
        TRY(advect_solver_next(solver, &ask));
        if (ask.kind == ADVECT_ASK_DONE) break;
        if (ask.kind == ADVECT_ASK_COMBINE) {
            TRY(advect_solver_combine(solver, device, &ask, states, state_count, slopes, slope_count));
        } else {
            advect_view *slope = &slopes[ask.stage * info.branches];
            if (guided) velocity(ask.t, states[ask.state], whole(no_class), *slope++);
            velocity(ask.t, states[ask.state], whole(classes), *slope);
        }
    }
    TRY(advect_tensor_download_f32(states[ask.state].tensor, drawn, images * PIXELS));

    double worst = 0;
    for (uint64_t i = 0; i < images * PIXELS; i++) {
        double difference = fabs(drawn[i] - wanted.values[i]);
        if (!(difference <= worst)) worst = difference; /* a NaN is kept */
    }
    for (uint32_t i = 0; i < state_count + slope_count; i++) TRY(advect_tensor_destroy(memory[i]));
    TRY(advect_solver_destroy(solver));
    TRY(advect_tensor_destroy(classes));
    TRY(advect_tensor_destroy(no_class));
    free(noise.values);
    free(labels.values);
    free(wanted.values);
    return worst;
}

static void picture(const char *path, const float *drawn) {
    FILE *out = fopen(path, "wb");
    if (!out) weights_die("cannot be written", path);
    fprintf(out, "P5 %d %d 255\n", SIDE, SIDE * (int)images);
    for (uint64_t i = 0; i < images * PIXELS; i++)
        fputc((int)(255 * (fmaxf(-1, fminf(1, drawn[i])) + 1) / 2 + 0.5f), out);
    fclose(out);
}

int main(int argc, char **argv) {
    if (argc < 5) return fprintf(stderr, "digits <checkout> <device> <images> <samples> [<picture.pgm>]\n"), 2;
    images = strtoull(argv[3], NULL, 10);
    if (images < 1 || images > 16) return fprintf(stderr, "1 to 16 images\n"), 2;
    if (advect_version() >> 8 != (ADVECT_VERSION_MAJOR << 8 | ADVECT_VERSION_MINOR))
        return fprintf(stderr, "advect %s is not the version of advect.h\n", advect_version_string()), 2;
    TRY(advect_device_open(argv[2], NULL, &device));
    advect_device_info info = {.struct_size = sizeof info};
    TRY(advect_device_describe(device, &info));
    printf("%s: %s\n", info.name, info.description);

    char folder[4096];
    snprintf(folder, sizeof folder, "%s/models/digits", argv[1]);
    model = weights_open(folder, "digits-flow.safetensors");
    snprintf(folder, sizeof folder, "%s/tests/golden", argv[1]);
    weights_file golden = weights_open(folder, "samples.safetensors");

    float *drawn = malloc(images * PIXELS * sizeof *drawn);
    if (!drawn) weights_die("no memory", "images");
    double worst = sample(argv[4], &golden, drawn);
    printf("%s: largest difference from the golden samples %.1e\n", argv[4], worst);
    if (argc > 5) picture(argv[5], drawn);

    free(drawn);
    weights_close(&golden);
    tensors_close();
    TRY(advect_device_destroy(device));
    /* What models/digits/README.md says that an f32 implementation reaches. */
    return worst <= 1e-5 ? 0 : 1;
}
