/* peers_kann.c - the perceptron of build/bench in kann, trained on labels: tools/peers.py runs this.
 *
 *     peers_kann mlp.train BATCH THREADS
 *
 * More kann cannot do: it has no gradient of a gradient, its convolutions have no bias, and where there is
 * padding they leave a row of the filter out. Pictures and first weights are those of bench_open. The loop
 * at the end of a step is SGD with momentum, since kann's own optimiser is another. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "kann.h"

typedef struct peer {
    kann_t     *net;
    kad_node_t *first;             /* the first layer's weights */
    float      *momenta;
    xg_optim    optim;
} peer;

/* Copies a weight of the library into a leaf of kann. */
static void copy(kad_node_t *to, xg_params *params, const char *layer, const char *what)
{
    char name[32];
    snprintf(name, sizeof name, "%s.%s", layer, what);
    memcpy(to->x, xg_params_data(params, xg_params_find(params, name)), (size_t)kad_len(to) * sizeof *to->x);
}

/* A dense layer with the library's weights; *weight, if it is not NULL, gets its leaf. */
static kad_node_t *dense(kad_node_t *x, int outputs, xg_params *params, const char *name, kad_node_t **weight)
{
    kad_node_t *y = kann_layer_dense(x, outputs), *w = y->child[0]->child[1];
    copy(w, params, name, "weight");
    copy(y->child[1], params, name, "bias");
    if (weight) *weight = w;
    return y;
}

static void build(peer *p, bench_run *r, int threads)
{
    const bench_model *m = r->work->model;
    kad_node_t *x = kann_layer_input(m->side * m->side), *truth = kad_feed(2, 1, m->classes), *cost;
    x = kad_relu(dense(x, 512, r->params, "fc1", &p->first));
    x = kad_relu(dense(x, 512, r->params, "fc2", NULL));
    x = kad_softmax(dense(x, m->classes, r->params, "fc", NULL));
    truth->ext_flag |= KANN_F_TRUTH;
    cost = kad_ce_multi(x, truth);
    cost->ext_flag |= KANN_F_COST;
    p->net = kann_new(cost, 0);
    p->momenta = calloc((size_t)kann_size_var(p->net), sizeof *p->momenta);
    float *one_hot = calloc((size_t)(r->batch * m->classes), sizeof *one_hot);
    for (int i = 0; i < r->batch; i++) one_hot[i * m->classes + r->label[i]] = 1;
    kann_feed_bind(p->net, KANN_F_IN, 0, &r->x);
    kann_feed_bind(p->net, KANN_F_TRUTH, 0, &one_hot);
    kann_set_batch_size(p->net, r->batch);
    kann_mt(p->net, threads, r->batch);
}

static bool step(void *context, double *check)
{
    peer *p = context;
    double loss = kann_cost(p->net, 0, 1), square = 0;
    float rate = (float)p->optim.lr, momentum = (float)p->optim.momentum;
    for (int i = 0; i < kann_size_var(p->net); i++) {
        p->momenta[i] = momentum * p->momenta[i] + p->net->g[i];
        p->net->x[i] -= rate * p->momenta[i];
    }
    if (check) {
        for (int i = 0; i < kad_len(p->first); i++) square += (double)p->first->g[i] * p->first->g[i];
        check[0] = loss;
        check[1] = sqrt(square);
    }
    return true;
}

int main(int argc, char **argv)
{
    bench_run r;
    peer p;
    xg_error error = { XG_ERR_OK, "" };
    if (argc < 4 || strcmp(argv[1], "mlp.train") || !bench_open(&r, argv[1], atoi(argv[2]), 1, &error)) {
        fprintf(stderr, "error: %s\n", error.code ? error.text : "peers_kann mlp.train BATCH THREADS");
        return 1;
    }
    p.optim = r.optim;
    build(&p, &r, atoi(argv[3]));
    return !bench_answer(KANN_VERSION, step, &p);
}
