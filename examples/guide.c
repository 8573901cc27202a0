/* guide.c - what guidance by explanations changes, with every library call in sight.
 *
 *     build/example_guide            about half a minute
 *     build/example_guide --quick    seconds: the same calls, too few steps to learn much
 *
 * In training, a coloured disc (the decoy) always tells the label; in the test it always lies. The
 * network is trained twice on the same scenes: on labels alone, and with a loss that wants what
 * speaks for the label (input times gradient) inside the object's mask. */
#include <stdlib.h>
#include <string.h>

#include "kit.h"

enum { BATCH = 32, CLASSES = 4, SIZE = 32 };

static xg_tensor *net(xg_scope *s, xg_tensor *x)
{
    xg_cnn_options cnn = { 16, 3, 0, CLASSES, false, false };
    return xg_cnn(s, xg_affine(x, 2, -1), &cnn);            /* pixels 0..1 become -1..1          */
}

/* What is explained: the label's logit less the mean of the others. Cross-entropy sees only such
 * differences; a logit alone would not show what is used to rule the other classes out. */
static xg_tensor *score_of(xg_tensor *logits, const int *label)
{
    xg_shape s = xg_shape_of(logits);
    xg_tensor *own = xg_pick(logits, label), *all = xg_sum_to(logits, xg_shape4(s.n, 1, 1, 1));
    return xg_sub(xg_affine(own, CLASSES / (CLASSES - 1.0), 0), xg_affine(all, 1 / (CLASSES - 1.0),
                                                                          0));
}

/* One step on a batch; lambda 0 trains plainly. */
static bool step(xg_tape *tape, xg_params *params, const kit_batch *b, double lambda)
{
    xg_mark mark = xg_tape_mark(tape);
    xg_scope scope = xg_scope_new(tape, params, NULL, true);
    xg_tensor *x = xg_leaf_borrow(tape, xg_shape4(b->count, 3, SIZE, SIZE), b->pixels);
    xg_tensor *logits = net(&scope, x);
    xg_tensor *loss = xg_cross_entropy(logits, b->label, NULL);
    if (lambda > 0) {
        xg_tensor *input = xg_find(tape, "input");           /* what the CNN was handed          */
        xg_tensor *map = xg_input_x_gradient(score_of(logits, b->label), input);
        xg_tensor *mask = xg_leaf_borrow(tape, xg_shape4(b->count, 1, SIZE, SIZE), b->masks);
        xg_guide_options guide = { XG_LOSS_ENERGY, NULL, true, false };
        loss = xg_add(loss, xg_affine(xg_guide(map, mask, &guide), lambda, 0));
    }
    xg_optim adam;
    memset(&adam, 0, sizeof adam);
    adam.kind = XG_ADAM;
    adam.lr = 0.004;
    bool fine = xg_optim_step(&adam, params, loss) == XG_ERR_OK;
    if (!fine) fprintf(stderr, "guide: %s\n", xg_tape_error(tape)->text);
    xg_tape_release(tape, mark);
    return fine;
}

/* Accuracy on a whole set; draws the first weights when the store is empty. */
static double accuracy(xg_tape *tape, xg_params *params, const kit_set *set)
{
    xg_mark mark = xg_tape_mark(tape);
    xg_rng rng = xg_rng_seed(1);
    xg_scope scope = xg_scope_new(tape, params, &rng, false);
    xg_tensor *x = xg_leaf_borrow(tape, xg_shape4(set->count, 3, SIZE, SIZE), set->pixels);
    double right = xg_accuracy(xg_data(net(&scope, x)), set->label, set->count, CLASSES);
    xg_tape_release(tape, mark);
    return right;
}

static bool draw(kit_set *set, int count, kit_decoy_rule rule, uint64_t seed, xg_error *error)
{
    kit_decoy_options scene;
    xg_rng rng = xg_rng_seed(seed);
    memset(&scene, 0, sizeof scene);
    scene.size = SIZE;
    scene.classes = CLASSES;
    scene.rule = rule;
    return kit_draw_decoy(set, count, &scene, &rng, error);
}

/* Trains on sets[0] and prints the accuracies on sets[1], more of the same, and sets[2], the
 * test. */
static bool train(const kit_set sets[3], double lambda, int epochs, const xg_config *config,
                  xg_error *error)
{
    xg_tape *tape = xg_tape_new(config);
    xg_params *params = xg_params_new(NULL);
    kit_order order;
    kit_batch batch;
    int index[BATCH];
    bool fine = kit_order_new(&order, NULL, sets[0].count, true, xg_rng_seed(2), error)
             && kit_batch_new(&batch, BATCH, 3, SIZE, SIZE, error);
    if (fine) accuracy(tape, params, &sets[1]);              /* draws the weights, alike for both */
    double started = kit_seconds();
    while (fine && order.epoch < epochs) {
        int count = kit_order_next(&order, BATCH, index);
        if (count == 0) continue;                            /* an epoch ended                    */
        fine = kit_batch_from_set(&batch, &sets[0], index, count, error)
            && step(tape, params, &batch, lambda);
    }
    if (fine) {
        double seconds = kit_seconds() - started;
        printf("%-7s %5.1f %% right on scenes like those of training, %5.1f %% where the decoy "
               "lies  (%.1f s)\n", lambda > 0 ? "guided" : "plain", 100 * accuracy(tape, params,
                                                                                   &sets[1]),
               100 * accuracy(tape, params, &sets[2]), seconds);
    }
    kit_batch_free(&batch);
    kit_order_free(&order);
    xg_params_free(params);
    xg_tape_free(tape);
    return fine;
}

int main(int argc, char **argv)
{
    bool quick = argc > 1 && strcmp(argv[1], "--quick") == 0;
    xg_error error = { XG_ERR_OK, "" };
    kit_set sets[3];
    memset(sets, 0, sizeof sets);
    xg_config config;
    memset(&config, 0, sizeof config);
    kit_pool *pool = kit_pool_new(0, &error);
    kit_pool_config(pool, &config);
    kit_memory_config(&config);
    bool fine = draw(&sets[0], quick ? 320 : 2000, KIT_DECOY_TELLS, 3, &error)
             && draw(&sets[1], quick ? 100 : 500, KIT_DECOY_TELLS, 4, &error)
             && draw(&sets[2], quick ? 100 : 500, KIT_DECOY_LIES, 5, &error)
             && train(sets, 0, quick ? 1 : 6, &config, &error)
             && train(sets, 3, quick ? 1 : 6, &config, &error);
    if (error.code != XG_ERR_OK) fprintf(stderr, "guide: %s\n", error.text);
    for (int i = 0; i < 3; i++) kit_set_free(&sets[i]);
    kit_pool_free(pool);
    return fine ? 0 : 1;
}
