/* Every operation of XG_OPS: gradients to third order, and forward values against the plainest loops.
 * A new operation has no case here until one is written, and then this file does not compile. */
#include "test.h"
#include <limits.h>

/* ---- gradients --------------------------------------------------------------------------------- */

typedef struct op_case {
    xg_function f;
    int inputs;
    xg_shape shape[2];
    double lo, hi;              /* range of the inputs                                                */
} op_case;

#define CASE(op, inputs, shape0, shape1, lo, hi, expression)                                       \
    static xg_tensor *f_##op(xg_tensor *const *x, int count, void *user)                           \
    {                                                                                              \
        xg_tape *t = xg_tape_of(x[0]);                                                             \
        (void)t; (void)count; (void)user;                                                          \
        return expression;                                                                         \
    }                                                                                              \
    static op_case case_##op(void)                                                                 \
    {                                                                                              \
        op_case c = { f_##op, inputs, { shape0, shape1 }, lo, hi };                                \
        return c;                                                                                  \
    }

#define S(n, c, h, w) { n, c, h, w }
#define NONE { 1, 1, 1, 1 }

static xg_window window(int kh, int kw, int stride, int pad, int dilation, int groups)
{
    xg_window k = { kh, kw, stride, pad, dilation, groups };
    return k;
}

/* Positions in a plane of 3 x 4. */
static xg_tensor *index_of(xg_tape *t)
{
    static const xg_real at[] = { 3, 0, 11, 3, 7, 3 };
    return xg_leaf(t, xg_shape4(1, 1, 2, 3), at);
}

CASE(leaf,       1, S(2,3,1,2), NONE, -1, 1, x[0])
CASE(exp,        1, S(2,3,1,2), NONE, -1, 1, xg_exp(x[0]))
CASE(log,        1, S(2,3,1,2), NONE, .5, 2, xg_log(x[0]))
CASE(sqrt,       1, S(2,3,1,2), NONE, .5, 2, xg_sqrt(x[0]))
CASE(pow,        1, S(2,3,1,2), NONE, .5, 2, xg_add(xg_pow(x[0], 2.5), xg_pow(x[0], -0.5)))
CASE(sigmoid,    1, S(2,3,1,2), NONE, -2, 2, xg_sigmoid(x[0]))
CASE(tanh,       1, S(2,3,1,2), NONE, -2, 2, xg_tanh(x[0]))
CASE(softplus,   1, S(2,3,1,2), NONE, -2, 2, xg_softplus(x[0]))
CASE(abs,        1, S(2,3,1,2), NONE, .2, 1, xg_abs(xg_affine(x[0], -1, 0)))
CASE(affine,     1, S(2,3,1,2), NONE, -1, 1, xg_affine(x[0], -1.5, 0.25))
CASE(relu,       1, S(2,3,1,2), NONE, -1, 1, xg_relu(x[0]))
CASE(clamp,      1, S(2,3,3,2), NONE, -1, 1, xg_clamp(x[0], -0.37, 0.41))
CASE(sign,       1, S(2,3,1,2), NONE, -1, 1, xg_mul(xg_sign(x[0]), x[0]))
CASE(step,       1, S(2,3,1,2), NONE, -1, 1, xg_mul(xg_step(x[0]), x[0]))
CASE(within,     1, S(2,3,1,2), NONE, -1, 1, xg_clamp(x[0], -0.4, 0.4))
CASE(add,        2, S(2,3,1,2), S(1,3,4,1), -1, 1, xg_add(x[0], x[1]))
CASE(sub,        2, S(2,3,1,2), S(1,3,4,1), -1, 1, xg_sub(x[0], x[1]))
CASE(mul,        2, S(2,3,1,2), S(1,3,4,1), -1, 1, xg_mul(x[0], x[1]))
CASE(div,        2, S(2,3,1,2), S(1,3,4,1), .5, 2, xg_div(x[0], x[1]))
CASE(max,        2, S(2,3,1,2), S(1,3,4,1), -1, 1, xg_max(x[0], x[1]))
CASE(min,        2, S(2,3,1,2), S(1,3,4,1), -1, 1, xg_min(x[0], x[1]))
CASE(less,       2, S(2,3,1,2), S(1,3,4,1), -1, 1, xg_mul(xg_less(x[0], x[1]), x[0]))
CASE(gate,       2, S(2,3,1,2), S(1,3,4,1), -1, 1, xg_gate(x[0], x[1]))
CASE(sum_to,     1, S(2,3,2,3), NONE, -1, 1, xg_sum_to(x[0], xg_shape4(2, 1, 2, 1)))
CASE(expand,     1, S(2,1,2,1), NONE, -1, 1, xg_expand(x[0], xg_shape4(2, 3, 2, 2)))
CASE(reshape,    1, S(2,3,1,2), NONE, -1, 1, xg_reshape(x[0], xg_shape4(1, 4, 3, 1)))
CASE(permute,    1, S(2,3,1,2), NONE, -1, 1, xg_permute(x[0], 3, 0, 1, 2))
CASE(flip,       1, S(2,3,1,2), NONE, -1, 1, xg_flip(x[0], false, true, false, true))
CASE(slice,      1, S(2,3,2,3), NONE, -1, 1, xg_slice(x[0], xg_shape4(1,0,1,1), xg_shape4(1,2,1,2)))
CASE(pad,        1, S(2,3,1,2), NONE, -1, 1, xg_pad(x[0], xg_shape4(0,1,2,0), xg_shape4(2,5,3,4)))
CASE(concat,     2, S(2,3,1,2), S(2,2,1,2), -1, 1, xg_concat(x[0], x[1], 1))
CASE(matmul,     2, S(2,1,3,2), S(1,2,2,3), -1, 1,
     xg_add(xg_matmul(x[0], x[1], false, false), xg_sum(xg_matmul(x[0], x[1], true, true))))
CASE(conv2d,     2, S(2,4,5,4), S(6,2,3,2), -1, 1, xg_conv2d(x[0], x[1], window(3,2,2,1,1,2)))
CASE(conv2d_dx,  2, S(6,2,3,2), S(2,6,3,3), -1, 1,
     xg_conv2d_dx(x[0], x[1], window(3,2,2,1,1,2), xg_shape4(2,4,5,4)))
CASE(conv2d_dw,  2, S(2,4,5,4), S(2,6,3,3), -1, 1,
     xg_conv2d_dw(x[0], x[1], window(3,2,2,1,1,2), xg_shape4(6,2,3,2)))
CASE(avgpool,    1, S(1,2,5,4), NONE, -1, 1, xg_avgpool(x[0], window(3,3,2,1,1,1)))
CASE(avgpool_t,  1, S(1,2,3,2), NONE, -1, 1,
     xg_avgpool_t(x[0], window(3,3,2,1,1,1), xg_shape4(1,2,5,4)))
CASE(argpool,    1, S(1,2,5,4), NONE, -1, 1, xg_maxpool(x[0], window(3,3,2,1,1,1)))
CASE(upsample,   1, S(1,2,3,2), NONE, -1, 1, xg_upsample(x[0], 5, 7))
CASE(upsample_t, 1, S(1,2,5,7), NONE, -1, 1, xg_upsample_t(x[0], xg_shape4(1,2,3,2)))
CASE(gather,     1, S(2,2,3,4), NONE, -1, 1, xg_gather(x[0], index_of(t)))
CASE(scatter,    1, S(2,2,2,3), NONE, -1, 1, xg_scatter(x[0], index_of(t), xg_shape4(2,2,3,4)))
CASE(argmax,     1, S(2,3,1,2), NONE, -1, 1, xg_mul(xg_argmax(x[0]), x[0]))
CASE(max_to,     1, S(2,3,2,2), NONE, -1, 1, xg_max_to(x[0], xg_shape4(2,1,1,2)))
CASE(topk_threshold, 1, S(2,3,2,2), NONE, -1, 1, xg_gate(x[0], xg_sub(x[0], xg_topk_threshold(x[0], 5))))
CASE(softmax,    1, S(2,3,1,2), NONE, -1, 1, xg_softmax(x[0]))
CASE(log_softmax,1, S(2,3,1,2), NONE, -1, 1, xg_log_softmax(x[0]))
CASE(detach,     1, S(2,3,1,2), NONE, -1, 1, x[0])   /* not a derivative: see test_control            */
CASE(barrier,    1, S(2,3,1,2), NONE, -1, 1, xg_barrier(x[0]))

/* x -> x + x^2/5 before and y -> y^2 + y after: so that second and third derivatives pass through the
 * rules of linear operations too. */
static xg_tensor *bent(xg_tensor *const *x, int count, void *user)
{
    const op_case *c = (const op_case *)user;
    xg_tensor *in[2] = { NULL, NULL };
    for (int i = 0; i < count; i++) in[i] = xg_add(x[i], xg_affine(xg_square(x[i]), 0.2, 0));
    xg_tensor *y = c->f(in, count, NULL);
    return xg_add(y, xg_square(y));
}

static void check_case(const char *name, op_case c)
{
    xg_tape *t = xg_tape_new(NULL);
    xg_rng rng = xg_rng_seed(7);
    xg_tensor *x[2];
    for (int i = 0; i < c.inputs; i++) {
        x[i] = xg_leaf(t, c.shape[i], NULL);
        for (size_t j = 0; j < xg_size(x[i]); j++) {
            xg_leaf_data(x[i])[j] = (xg_real)(c.lo + (c.hi - c.lo) * xg_rng_uniform(&rng));
        }
    }
    for (int direction = 0; direction < 3; direction++) {
        double error = xg_gradcheck(bent, &c, x, c.inputs, IS_DOUBLE ? 3 : 1,
                                    IS_DOUBLE ? 1e-5 : 2e-3, &rng);
        if (!(error < TOL(5e-2, 1e-6))) {
            printf("  %s: worst relative error %g %s\n", name, error, xg_tape_error(t)->text);
            CHECK(error < TOL(5e-2, 1e-6));
        }
    }
    xg_tape_free(t);
}

static void test_gradients_to_third_order(void)
{
#define X(name, operands, kernel, gradient, formula) check_case(#name, case_##name());
    XG_OPS(X)
#undef X
}

static xg_tensor *composite(xg_tensor *const *x, int count, void *user)
{
    const int label[2] = { 2, 0 };
    const double weight[3] = { 0.5, 1, 2 };
    xg_tensor *z = xg_flatten(xg_normalise(x[0], xg_shape4(1, 3, 1, 1), 1e-3));
    (void)count; (void)user;
    z = xg_slice(z, xg_shape4(0, 0, 0, 0), xg_shape4(2, 3, 1, 1));
    xg_tensor *loss = xg_cross_entropy(z, label, weight);
    loss = xg_add(loss, xg_bce_with_logits(z, xg_one_hot(xg_tape_of(z), label, 2, 3)));
    return xg_add(loss, xg_mean(xg_square(xg_pick(z, label))));
}

static void test_composites_to_third_order(void)
{
    xg_tape *t = xg_tape_new(NULL);
    xg_rng rng = xg_rng_seed(3);
    xg_tensor *x = xg_randn(t, xg_shape4(2, 3, 2, 2), &rng);
    double error = xg_gradcheck(composite, NULL, &x, 1, IS_DOUBLE ? 3 : 1, IS_DOUBLE ? 1e-5 : 2e-3, &rng);
    CHECK_NEAR(error, 0, TOL(5e-2, 1e-6));
    xg_tape_free(t);
}

/* A wrong rule must be seen: the check itself is checked. */
static xg_tensor *wrong_exp(xg_tensor *const *x, int count, void *user)
{
    (void)count; (void)user;
    return xg_add(xg_exp(x[0]), xg_sub(xg_square(x[0]), xg_detach(xg_square(x[0]))));
}

static void test_gradcheck_sees_a_wrong_gradient(void)
{
    xg_tape *t = xg_tape_new(NULL);
    xg_rng rng = xg_rng_seed(5);
    xg_tensor *x = xg_randn(t, xg_shape4(1, 4, 1, 1), &rng);
    CHECK(xg_gradcheck(wrong_exp, NULL, &x, 1, 1, IS_DOUBLE ? 1e-5 : 2e-3, &rng) > 0.05);
    xg_tape_free(t);
}

static void test_control(void)
{
    xg_tape *t = xg_tape_new(NULL);
    xg_tensor *x = xg_scalar(t, 3);
    CHECK_NEAR(xg_item(xg_grad(xg_mul(x, xg_detach(x)), x)), 3, 0);
    CHECK_NEAR(xg_item(xg_grad(xg_mul(x, xg_barrier(x)), x)), 6, 0);
    xg_rules explain = xg_rules_explain();
    xg_tensor *g;
    xg_grads(xg_mul(x, xg_barrier(x)), NULL, &x, 1, &explain, &g);
    CHECK_NEAR(xg_item(g), 3, 0);                       /* the barrier was a constant ...             */
    CHECK_NEAR(xg_item(xg_grad(g, x)), 1, 0);           /* ... but the explanation depends on it      */
    CHECK_NEAR(xg_item(xg_grad(xg_scalar(t, 1), x)), 0, 0);
    CHECK_OK(t);
    xg_tape_free(t);
}

/* ---- forward values ---------------------------------------------------------------------------- */

static xg_tensor *noise(xg_tape *t, int n, int c, int h, int w, xg_rng *rng)
{
    return xg_randn(t, xg_shape4(n, c, h, w), rng);
}

static double at(xg_tensor *x, int n, int c, int h, int w)
{
    xg_shape s = xg_shape_of(x);
    size_t i = (size_t)((((n % s.n) * s.c + c % s.c) * s.h + h % s.h) * s.w + w % s.w);
    return (double)xg_data(x)[i];                       /* extents of 1 broadcast through the modulo  */
}

/* Largest difference to naive(n,c,h,w), relative to 1 or the value. */
static double worst(xg_tensor *y, double (*naive)(void *user, int n, int c, int h, int w), void *user)
{
    xg_shape s = xg_shape_of(y);
    double most = 0;
    for (int n = 0; n < s.n; n++)
        for (int c = 0; c < s.c; c++)
            for (int h = 0; h < s.h; h++)
                for (int w = 0; w < s.w; w++) {
                    double expected = naive(user, n, c, h, w);
                    double error = fabs(at(y, n, c, h, w) - expected) / fmax(1, fabs(expected));
                    if (!(error <= most)) most = error;
                }
    return most;
}

typedef struct pair { xg_tensor *a, *b; int ta, tb; xg_window k; xg_shape whole; } pair;

static double naive_matmul(void *user, int n, int c, int i, int j)
{
    pair *p = (pair *)user;
    xg_shape a = xg_shape_of(p->a);
    double sum = 0;
    for (int k = 0; k < (p->ta ? a.h : a.w); k++) {
        sum += (p->ta ? at(p->a, n, c, k, i) : at(p->a, n, c, i, k)) *
               (p->tb ? at(p->b, n, c, j, k) : at(p->b, n, c, k, j));
    }
    return sum;
}

static void test_matmul_against_loops(void)
{
    static const int size[][3] = { {1,1,1}, {2,3,4}, {17,1,5}, {1,33,7}, {31,47,65}, {64,49,129},
                                   {5,10,300}, {16,128,1}, {97,13,521}, {7,470,300}, {70,480,20} };
    xg_rng rng = xg_rng_seed(1);
    for (size_t i = 0; i < sizeof size / sizeof *size; i++) {
        for (int flags = 0; flags < 4; flags++) {
            xg_tape *t = xg_tape_new(NULL);
            int m = size[i][0], n = size[i][1], k = size[i][2];
            pair p;
            memset(&p, 0, sizeof p);
            p.ta = flags & 1;
            p.tb = flags >> 1;
            p.a = noise(t, 2, 1, p.ta ? k : m, p.ta ? m : k, &rng);
            p.b = noise(t, i % 2 ? 2 : 1, i % 3 ? 1 : 3, p.tb ? n : k, p.tb ? k : n, &rng);
            CHECK(worst(xg_matmul(p.a, p.b, p.ta != 0, p.tb != 0), naive_matmul, &p) < TOL(2e-4, 1e-12));
            CHECK_OK(t);
            xg_tape_free(t);
        }
    }
}

static double naive_conv(void *user, int n, int o, int y, int x)
{
    pair *p = (pair *)user;
    xg_shape in = xg_shape_of(p->a), w = xg_shape_of(p->b);
    int group = o / (w.n / p->k.groups);
    double sum = 0;
    for (int c = 0; c < w.c; c++)
        for (int r = 0; r < w.h; r++)
            for (int s = 0; s < w.w; s++) {
                int iy = y * p->k.stride - p->k.pad + r * p->k.dilation;
                int ix = x * p->k.stride - p->k.pad + s * p->k.dilation;
                if (iy < 0 || ix < 0 || iy >= in.h || ix >= in.w) continue;
                sum += at(p->a, n, group * w.c + c, iy, ix) * at(p->b, o, c, r, s);
            }
    return sum;
}

/* <g, conv(a, b)> by loops. */
static double naive_form(pair *p, xg_tensor *g)
{
    xg_shape s = xg_shape_of(g);
    double form = 0;
    for (int n = 0; n < s.n; n++)
        for (int c = 0; c < s.c; c++)
            for (int h = 0; h < s.h; h++)
                for (int w = 0; w < s.w; w++) form += at(g, n, c, h, w) * naive_conv(p, n, c, h, w);
    return form;
}

/* The trio is one trilinear form: <g, conv(x,w)> = <x, dx(w,g)> = <w, dw(x,g)>; and for basis vectors
 * of x and w the forms are the entries themselves, so random probes determine all three. */
static void check_trio(xg_shape x, xg_shape w, xg_window k)
{
    xg_tape *t = xg_tape_new(NULL);
    xg_rng rng = xg_rng_seed(11);
    pair p;
    memset(&p, 0, sizeof p);
    p.a = xg_randn(t, x, &rng);
    p.b = xg_randn(t, w, &rng);
    p.k = k;
    xg_tensor *y = xg_conv2d(p.a, p.b, k);
    CHECK_OK(t);
    CHECK(worst(y, naive_conv, &p) < TOL(1e-4, 1e-12));

    xg_tensor *g = xg_randn(t, xg_shape_of(y), &rng);
    xg_tensor *dx = xg_conv2d_dx(p.b, g, k, x), *dw = xg_conv2d_dw(p.a, g, k, w);
    for (int probe = 0; probe < 6; probe++) {           /* forward in x and w is checked: use it      */
        xg_tensor *vx = xg_randn(t, x, &rng), *vw = xg_randn(t, w, &rng);
        double scale = sqrt((double)xg_size(g));
        pair with_x = p, with_w = p;
        with_x.a = vx;
        with_w.b = vw;
        CHECK_NEAR(xg_item(xg_dot(vx, dx)) / scale, naive_form(&with_x, g) / scale, TOL(2e-3, 1e-11));
        CHECK_NEAR(xg_item(xg_dot(vw, dw)) / scale, naive_form(&with_w, g) / scale, TOL(2e-3, 1e-11));
    }
    xg_tape_free(t);
}

static void test_convolutions_against_loops(void)
{
    check_trio(xg_shape4(1,1,1,1), xg_shape4(1,1,1,1), window(1,1,1,0,1,1));
    check_trio(xg_shape4(2,3,9,7), xg_shape4(5,3,3,3), window(3,3,1,1,1,1));
    check_trio(xg_shape4(2,3,9,7), xg_shape4(5,3,3,3), window(3,3,2,1,1,1));
    check_trio(xg_shape4(1,4,11,13), xg_shape4(6,2,3,5), window(3,5,3,2,2,2));
    check_trio(xg_shape4(3,6,5,5), xg_shape4(6,1,3,3), window(3,3,1,1,1,6));
    check_trio(xg_shape4(2,21,9,8), xg_shape4(21,1,3,2), window(3,2,2,2,2,21));
    check_trio(xg_shape4(2,8,7,7), xg_shape4(12,8,1,1), window(1,1,1,0,1,1));
    check_trio(xg_shape4(2,8,7,7), xg_shape4(12,8,1,1), window(1,1,2,0,1,1));
    check_trio(xg_shape4(1,3,20,18), xg_shape4(17,3,7,7), window(7,7,2,3,1,1));
    check_trio(xg_shape4(2,16,8,8), xg_shape4(33,16,3,3), window(3,3,1,1,1,1));
    check_trio(xg_shape4(1,2,4,4), xg_shape4(3,2,2,2), window(2,2,1,3,1,1));
    check_trio(xg_shape4(1,2,6,6), xg_shape4(3,2,2,2), window(2,2,5,0,1,1));
    check_trio(xg_shape4(1,40,6,5), xg_shape4(20,40,3,3), window(3,3,1,1,1,1));
    check_trio(xg_shape4(1,5,3,3), xg_shape4(80,5,3,3), window(3,3,1,1,1,1));      /* few pixels */
    check_trio(xg_shape4(2,4,4,5), xg_shape4(100,4,3,3), window(3,3,2,1,1,1));
    check_trio(xg_shape4(1,6,5,4), xg_shape4(64,3,2,3), window(2,3,3,2,2,2));
    check_trio(xg_shape4(2,9,2,2), xg_shape4(70,9,1,1), window(1,1,1,0,1,1));
}

/* Padding makes large planes of small ones. What is too large is refused before memory is asked for. */
static void test_planes_too_large(void)
{
    xg_tape *t = xg_tape_new(NULL);
    xg_tensor *one = xg_scalar(t, 1);
    xg_conv2d(one, one, window(1,1,1,23250,1,1));      /* 46501 squared is above 2^31 */
    CHECK(xg_tape_error(t)->code == XG_ERR_SHAPE);
    xg_tape_free(t);
}

/* Strides longer than the picture is high or wide, or nearly; one pixel, that no window sees. */
static void test_long_strides(void)
{
    check_trio(xg_shape4(1,2,9,1), xg_shape4(3,2,2,1), window(2,1,3,0,1,1));
    check_trio(xg_shape4(2,2,3,2), xg_shape4(3,2,2,2), window(2,2,7,1,1,1));
    check_trio(xg_shape4(1,3,1,1), xg_shape4(2,3,1,1), window(1,1,3,1,1,1));
    check_trio(xg_shape4(1,2,3,5), xg_shape4(3,2,2,2), window(2,2,32767,1,1,1));
    check_trio(xg_shape4(1,2,2,100000), xg_shape4(2,1,2,2), window(2,2,32767,0,1,2));
}

static double naive_avgpool(void *user, int n, int c, int y, int x)
{
    pair *p = (pair *)user;
    xg_shape in = xg_shape_of(p->a);
    double sum = 0;
    for (int r = 0; r < p->k.kh; r++)
        for (int s = 0; s < p->k.kw; s++) {
            int iy = y * p->k.stride - p->k.pad + r * p->k.dilation;
            int ix = x * p->k.stride - p->k.pad + s * p->k.dilation;
            if (iy >= 0 && ix >= 0 && iy < in.h && ix < in.w) sum += at(p->a, n, c, iy, ix);
        }
    return sum / (p->k.kh * p->k.kw);
}

static double naive_maxpool(void *user, int n, int c, int y, int x)
{
    pair *p = (pair *)user;
    xg_shape in = xg_shape_of(p->a);
    double best = -INFINITY;
    for (int r = 0; r < p->k.kh; r++)
        for (int s = 0; s < p->k.kw; s++) {
            int iy = y * p->k.stride - p->k.pad + r * p->k.dilation;
            int ix = x * p->k.stride - p->k.pad + s * p->k.dilation;
            if (iy >= 0 && ix >= 0 && iy < in.h && ix < in.w) best = fmax(best, at(p->a, n, c, iy, ix));
        }
    return best;
}

static void test_pools_against_loops(void)
{
    static const int k[][6] = { {2,2,2,0,1,1}, {3,3,2,1,1,1}, {3,2,1,1,1,1}, {2,3,3,0,2,1}, {3,3,1,1,2,1} };
    xg_rng rng = xg_rng_seed(2);
    for (size_t i = 0; i < sizeof k / sizeof *k; i++) {
        xg_tape *t = xg_tape_new(NULL);
        pair p;
        memset(&p, 0, sizeof p);
        p.a = noise(t, 2, 3, 9, 11, &rng);
        p.k = window(k[i][0], k[i][1], k[i][2], k[i][3], k[i][4], 1);
        CHECK(worst(xg_avgpool(p.a, p.k), naive_avgpool, &p) < TOL(1e-6, 1e-14));
        CHECK(worst(xg_maxpool(p.a, p.k), naive_maxpool, &p) == 0);
        CHECK_OK(t);
        xg_tape_free(t);
    }
}

static double naive_sum_to(void *user, int n, int c, int h, int w)
{
    pair *p = (pair *)user;
    xg_shape s = xg_shape_of(p->a), to = p->whole;
    double sum = 0;
    for (int i = 0; i < (to.n == 1 ? s.n : 1); i++)
        for (int j = 0; j < (to.c == 1 ? s.c : 1); j++)
            for (int k = 0; k < (to.h == 1 ? s.h : 1); k++)
                for (int l = 0; l < (to.w == 1 ? s.w : 1); l++)
                    sum += at(p->a, n + i, c + j, h + k, w + l);
    return sum;
}

static void test_sums_against_loops(void)
{
    static const int extents[][4] = { {2,3,4,5}, {3,1,7,1}, {1,5,1,33}, {4,17,3,19}, {1,1,1,1} };
    xg_rng rng = xg_rng_seed(4);
    for (size_t i = 0; i < sizeof extents / sizeof *extents; i++) {
        for (int keep = 0; keep < 16; keep++) {
            xg_tape *t = xg_tape_new(NULL);
            const int *e = extents[i];
            pair p;
            memset(&p, 0, sizeof p);
            p.a = noise(t, e[0], e[1], e[2], e[3], &rng);
            p.whole = xg_shape4(keep & 1 ? e[0] : 1, keep & 2 ? e[1] : 1, keep & 4 ? e[2] : 1,
                                keep & 8 ? e[3] : 1);
            CHECK(worst(xg_sum_to(p.a, p.whole), naive_sum_to, &p) < TOL(1e-6, 1e-13));
            CHECK_OK(t);
            xg_tape_free(t);
        }
    }
}

static double naive_sub(void *user, int n, int c, int h, int w)
{
    pair *p = (pair *)user;
    return (double)(xg_real)(at(p->a, n, c, h, w) - at(p->b, n, c, h, w));
}

static void test_broadcasting_against_loops(void)
{
    xg_rng rng = xg_rng_seed(6);
    for (int mask = 0; mask < 256; mask++) {
        xg_tape *t = xg_tape_new(NULL);
        static const int e[4] = { 2, 3, 5, 19 };
        int a[4], b[4];
        for (int i = 0; i < 4; i++) {
            a[i] = mask >> i & 1 ? e[i] : 1;
            b[i] = mask >> (4 + i) & 1 ? e[i] : 1;
        }
        pair p;
        memset(&p, 0, sizeof p);
        p.a = noise(t, a[0], a[1], a[2], a[3], &rng);
        p.b = noise(t, b[0], b[1], b[2], b[3], &rng);
        CHECK(worst(xg_sub(p.a, p.b), naive_sub, &p) < TOL(1e-6, 1e-15));
        CHECK_OK(t);
        xg_tape_free(t);
    }
}

/* Values worked by hand: 2 -> 4 reads at -0.25 (clamped to 0), 0.25, 0.75, 1.25. */
static void test_upsample_by_hand(void)
{
    static const xg_real two[] = { 0, 8 };
    xg_tape *t = xg_tape_new(NULL);
    const xg_real *y = xg_data(xg_upsample(xg_leaf(t, xg_shape4(1, 1, 1, 2), two), 1, 4));
    CHECK_NEAR(y[0], 0, 0);
    CHECK_NEAR(y[1], 2, 0);
    CHECK_NEAR(y[2], 6, 0);
    CHECK_NEAR(y[3], 8, 0);
    CHECK_OK(t);
    xg_tape_free(t);
}

static void test_selection_by_hand(void)
{
    static const xg_real v[] = { 1, 5, 5, 2, -1, 7 };
    xg_tape *t = xg_tape_new(NULL);
    xg_tensor *x = xg_leaf(t, xg_shape4(1, 3, 1, 2), v);
    CHECK_NEAR(xg_data(xg_argmax(x))[0], 1, 0);
    CHECK_NEAR(xg_data(xg_argmax(x))[1], 2, 0);
    CHECK_NEAR(xg_item(xg_topk_threshold(x, 1)), 6, 0);
    CHECK_NEAR(xg_item(xg_topk_threshold(x, 2)), 5, 0);
    CHECK(xg_item(xg_topk_threshold(x, 6)) < -1);
    xg_tensor *top = xg_max_to(xg_slice(x, xg_shape4(0,0,0,0), xg_shape4(1,2,1,2)), xg_shape4(1,1,1,1));
    xg_tensor *g = xg_grad(top, x);
    CHECK_NEAR(xg_data(g)[1], 0.5, 0);                  /* 5 stands twice: the gradient is shared     */
    CHECK_NEAR(xg_data(g)[2], 0.5, 0);
    CHECK_OK(t);
    xg_tape_free(t);
}

static void test_softmax_is_stable(void)
{
    static const xg_real z[] = { 1000, 999, -1000 };
    xg_tape *t = xg_tape_new(NULL);
    xg_tensor *x = xg_leaf(t, xg_shape4(1, 3, 1, 1), z);
    double e = exp(-1.0);
    CHECK_NEAR(xg_data(xg_softmax(x))[0], 1 / (1 + e), TOL(1e-6, 1e-14));
    CHECK_NEAR(xg_data(xg_log_softmax(x))[2], -2000 - log(1 + e), TOL(1e-6, 1e-14));
    CHECK_NEAR(xg_item(xg_sum(xg_softmax(x))), 1, TOL(1e-6, 1e-14));
    CHECK_OK(t);
    xg_tape_free(t);
}

/* ---- edges ------------------------------------------------------------------------------------- */

static double slope(xg_tensor *y, xg_tensor *x, int i) { return (double)xg_data(xg_grad(y, x))[i]; }

static void test_ties_and_kinks(void)
{
    static const xg_real v[] = { -2, -1, 0, 1, 2 };
    xg_tape *t = xg_tape_new(NULL);
    xg_tensor *x = xg_leaf(t, xg_shape4(1, 1, 1, 5), v), *same = xg_leaf(t, xg_shape4(1, 1, 1, 5), v);
    for (int i = 0; i < 5; i++) {
        CHECK_NEAR(slope(xg_max(x, same), x, i), 1, 0);
        CHECK_NEAR(slope(xg_max(x, same), same, i), 0, 0);
        CHECK_NEAR(slope(xg_min(x, same), x, i), 1, 0);
        CHECK_NEAR(slope(xg_min(x, same), same, i), 0, 0);
        CHECK_NEAR(slope(xg_clamp(x, -1, 1), x, i), i > 0 && i < 4, 0);
        CHECK_NEAR(slope(xg_relu(x), x, i), i > 2, 0);
        CHECK_NEAR(slope(xg_abs(x), x, i), i - 2 > 0 ? 1 : i - 2 < 0 ? -1 : 0, 0);
    }
    CHECK_OK(t);
    xg_tape_free(t);
}

/* What was not chosen gets nothing, even of an infinite cotangent. */
static void test_infinite_cotangents(void)
{
    static const xg_real v[] = { -1, 4 };
    xg_tape *t = xg_tape_new(NULL);
    xg_tensor *x = xg_leaf(t, xg_shape4(1, 1, 1, 2), v), *zero = xg_scalar(t, 0);
    xg_tensor *rises[3] = { xg_relu(x), xg_max(x, zero), xg_clamp(x, 0, 9) };
    for (int i = 0; i < 3; i++) {
        CHECK_NEAR(slope(xg_sqrt(rises[i]), x, 0), 0, 0);
        CHECK_NEAR(slope(xg_sqrt(rises[i]), x, 1), 0.25, 0);
    }
    CHECK_NEAR(slope(xg_sqrt(xg_neg(xg_min(x, zero))), x, 1), 0, 0);
    xg_tensor *best = xg_max_to(xg_affine(x, 1, -4), xg_shape4(1, 1, 1, 1));
    CHECK_NEAR(slope(xg_sqrt(best), x, 0), 0, 0);
    CHECK(slope(xg_sqrt(best), x, 1) > 1e30);
    CHECK_OK(t);
    xg_tape_free(t);
}

/* A request that would lead out of a tensor, by number; what the error says of it, or NULL past the
 * last. What operations make of an index is seen when its numbers are. */
static const char *ask_outside(xg_tape *t, int which)
{
    const xg_window far = window(1,1,1,0,32767,1), gap = window(2,2,1,2,3,1), tight = window(1,1,1,1,1,1);
    const xg_window pairs = window(2,2,2,0,1,1), around = window(3,3,1,1,1,1), long_step = window(2,2,40000,0,1,1);
    const xg_window many = window(1,1,1,0,1,INT_MAX);
    const xg_shape one = xg_shape4(1, 1, 1, 1), four = xg_shape4(1, 1, 4, 4), two = xg_shape4(1, 1, 2, 2);
    const int sample = (1 << 24) + 1;
    xg_tensor *x = xg_full(t, four, 1), *small = xg_full(t, two, 1), *y = NULL;
    xg_tensor *last = xg_argpool(xg_leaf(t, four, NULL), pairs);             /* 0, 2, 8 and 10 */
    const char *says = "outside the plane";
    switch (which) {
    case 0: y = xg_conv2d(x, xg_full(t, xg_shape4(1, 1, 131073, 1), 1), far); says = "do not fit"; break;
    case 1: y = xg_conv2d_dx(xg_full(t, xg_shape4(1, 1, 3, 3), 1), small, around, xg_shape4(1, 1, INT_MAX, 2));
            says = "do not fit"; break;
    case 2: y = xg_conv2d(xg_full(t, xg_shape4(1, 3, 1, 1), 1), xg_full(t, xg_shape4(1, 3, 1, 1), 1), many);
            says = "channels differ"; break;
    case 3: y = xg_maxpool(xg_full(t, one, 1), gap); says = "meets no number"; break;
    case 4: y = xg_avgpool(x, long_step); says = "above 32767"; break;
    case 5: y = xg_avgpool_t(xg_full(t, xg_shape4(1, 1, 6, 6), 1), tight, four); says = "half the window"; break;
    case 6: y = xg_pad(x, xg_shape4(0, 0, 0, 0), xg_shape4(1, 1, INT_MIN, 4)); says = "at that place"; break;
    case 7: y = xg_gather(x, xg_full(t, one, 1e30)); break;
    case 8: y = xg_gather(x, xg_full(t, one, HUGE_VAL)); break;
    case 9: y = xg_gather(x, xg_full(t, one, (double)NAN)); break;
    case 10: y = xg_gather(x, xg_full(t, one, -1)); break;
    case 11: y = xg_gather(x, xg_reshape(xg_full(t, xg_shape4(1, 1, 1, 2), 16), xg_shape4(1, 1, 2, 1))); break;
    case 12: y = xg_gather(x, xg_affine(last, 2, 0)); break;
    case 13: y = xg_gather(small, last); break;
    case 14: y = xg_scatter(small, last, two); break;
    case 15: y = xg_take(xg_expand(xg_scalar(t, 1), xg_shape4(sample + 1, 1, 1, 1)), &sample, 1);
             says = "[0, 16777216)"; break;
    default: return NULL;
    }
    xg_data(y);
    return says;
}

static void test_what_leads_out_is_refused(void)
{
    bool more = true;
    for (int which = 0; more; which++) {
        xg_tape *t = xg_tape_new(NULL);
        const char *says = ask_outside(t, which);
        more = says != NULL;
        if (more && !strstr(xg_tape_error(t)->text, says)) {
            printf("  request %d: %s\n", which, xg_tape_error(t)->text);
            CHECK(!"refused");
        }
        xg_tape_free(t);
    }
}

/* What is unusual, yet inside: a dilated window about a single number, places in larger planes. */
static void test_what_stays_inside(void)
{
    const xg_window gap = window(3,3,1,2,2,1), pairs = window(2,2,2,0,1,1);
    static const xg_real v[] = { 3, 1, 2, 4 };
    xg_tape *t = xg_tape_new(NULL);
    xg_tensor *x = xg_leaf(t, xg_shape4(1, 1, 2, 2), v), *large = xg_leaf(t, xg_shape4(1, 1, 4, 1), v);
    CHECK_NEAR(xg_item(xg_maxpool(xg_scalar(t, -5), gap)), -5, 0);
    CHECK_NEAR(xg_item(xg_gather(large, xg_argpool(x, pairs))), 4, 0);
    CHECK_NEAR(xg_data(xg_scatter(xg_scalar(t, 7), xg_argpool(x, pairs), xg_shape4(1, 1, 4, 1)))[3], 7, 0);
    CHECK_NEAR(xg_item(xg_gather(large, xg_affine(xg_argpool(x, pairs), 1, -1))), 2, 0);
    CHECK_OK(t);
    xg_tape_free(t);
}

static void test_threshold_with_nan(void)
{
    const xg_real v[] = { 3, (xg_real)NAN, 1, 2 };
    xg_tape *t = xg_tape_new(NULL);
    xg_tensor *x = xg_leaf(t, xg_shape4(1, 4, 1, 1), v);
    double top = xg_item(xg_topk_threshold(x, 1));
    CHECK(top != top);
    CHECK_NEAR(xg_item(xg_topk_threshold(x, 2)), 2.5, 0);
    CHECK_NEAR(xg_item(xg_topk_threshold(x, 3)), 1.5, 0);
    CHECK_OK(t);
    xg_tape_free(t);
}

TEST_MAIN(
    TEST(test_gradients_to_third_order)
    TEST(test_composites_to_third_order)
    TEST(test_gradcheck_sees_a_wrong_gradient)
    TEST(test_control)
    TEST(test_matmul_against_loops)
    TEST(test_convolutions_against_loops)
    TEST(test_planes_too_large)
    TEST(test_long_strides)
    TEST(test_pools_against_loops)
    TEST(test_sums_against_loops)
    TEST(test_broadcasting_against_loops)
    TEST(test_upsample_by_hand)
    TEST(test_selection_by_hand)
    TEST(test_softmax_is_stable)
    TEST(test_ties_and_kinks)
    TEST(test_infinite_cotangents)
    TEST(test_what_leads_out_is_refused)
    TEST(test_what_stays_inside)
    TEST(test_threshold_with_nan)
)
