/* xguide.h 0.10.1 - train neural networks with explanations.     Public domain or MIT (see the end)
 *
 * One file. In exactly one source file:
 *
 *     #define XG_IMPLEMENTATION
 *     #include "xguide.h"
 *
 * and everywhere else just the #include. It needs a C99 or C++17 compiler, libc and libm.
 *
 *
 * WHAT IT IS
 *
 * A network that is right for the wrong reasons fails when the reasons go away: a bird classifier
 * that looks at the water, a scanner that reads the hospital's tag. The cure is to tell it not only
 * what is in the picture, but where to look. Its own explanation (which pixels made it say so)
 * becomes a term of the loss, and training moves both the answer and the reason.
 *
 * That needs one thing that small libraries do not have and large ones do badly: the explanation is
 * itself a derivative, so training through it takes a derivative of a derivative. Here the gradient
 * is a tensor like any other, made of the same operations, and can be differentiated again, to any
 * order, exactly, through convolutions, batch norm, pooling and all.
 *
 *     logits = net(x)                                  what it says
 *     map    = x * d logits[label] / dx                why: input times gradient
 *     loss   = cross_entropy(logits, label)            be right
 *            + lambda * energy_outside(map, mask)      for the right reasons
 *     step along d loss / d weights                    which differentiates the map once more
 *
 * WHAT IT IS NOT
 *
 * Not a general deep-learning framework: every tensor is a batch of pictures, there is no GPU, no
 * data loader, no image decoder, no ONNX. Not a collection of every explainer ever published. It
 * never prints, never aborts, never touches a file that you did not name, and has no global state.
 *
 *
 * THIRTY LINES THAT TRAIN WITH GUIDANCE
 *
 *     static xg_tensor *net(xg_scope *s, xg_tensor *x)
 *     {
 *         xg_cnn_options o = { 0 };
 *         o.classes = 2;
 *         return xg_cnn(s, x, &o);                     // a model is a function
 *     }
 *
 *     xg_tape   *tape   = xg_tape_new(NULL);           // owns every tensor of a step
 *     xg_params *params = xg_params_new(NULL);         // owns the weights, by name
 *     xg_rng     rng    = xg_rng_seed(1);
 *     xg_optim   adam   = { XG_ADAM };
 *
 *     for (int step = 0; step < steps; step++) {
 *         xg_mark   mark  = xg_tape_mark(tape);
 *         xg_scope  scope = xg_scope_new(tape, params, &rng, true);
 *         xg_tensor *x    = xg_leaf(tape, xg_shape4(n, 3, 64, 64), pixels);
 *         xg_tensor *mask = xg_leaf(tape, xg_shape4(n, 1, 64, 64), masks);
 *
 *         xg_tensor *logits = net(&scope, x);
 *         xg_tensor *map    = xg_input_x_gradient(xg_pick(logits, label), x);
 *         xg_guide_options energy = { XG_LOSS_ENERGY };
 *         xg_tensor *loss   = xg_add(xg_cross_entropy(logits, label, NULL),
 *                                    xg_affine(xg_guide(map, mask, &energy), lambda, 0));
 *
 *         if (xg_optim_step(&adam, params, loss) != XG_ERR_OK) {
 *             fprintf(stderr, "%s\n", xg_tape_error(tape)->text);
 *             break;
 *         }
 *         xg_tape_release(tape, mark);                 // all tensors of the step are gone
 *     }
 *     xg_params_save(params, "model.safetensors", NULL);
 *
 *
 * INDEX        Each number stands here and on its banner: search for "[A5]" to see what there is to
 *              call, for "[5]" to see how it works.
 *
 *   to call            how it works
 *   [A1]  platform     [1]   types, versions, error codes, random numbers
 *   [A2]  memory       [2]   configuration, arena, statistics
 *   [A3]  kernels      [3]   vectors, pointwise, sums, matrix product, convolution; one text
 *   [A4]  tape         [4]   tensors, marks, errors, leaves, names; emit, the one door
 *   [A5]  ops          [5]   the list of operations, and a room for each
 *   [A6]  readings     [6]   gradients, rule tables, interval bounds, decomposition, gradient check
 *   [A7]  models       [7]   parameters, layers, networks, optimisers
 *   [A8]  attribute    [8]   explanations: gradient, Grad-CAM, B-cos, integrated gradients
 *   [A9]  guide        [9]   losses on explanations; masks from boxes
 *   [A10] measure      [10]  is the explanation in the right place, is the answer right
 *   [A11] files        [11]  safetensors, npy, checkpoints
 *
 * A section uses those above it and never those below.
 *
 *
 * HOW IT WORKS, IN TEN SENTENCES
 *
 *  1. Every tensor is n x c x h x w, row-major; a missing axis has extent 1.
 *  2. Calling an operation records it on the tape of its operands and runs it; pointwise ones and
 *     sums wait until somebody asks for their numbers, and then run together: all that batch norm
 *     does to a channel, in any order of derivative, passes over it while it is in the cache.
 *  3. To differentiate, the tape is read backwards: each operation has a rule that says, in the
 *     same operations, what its operands' share of a cotangent is. So gradients land on the same
 *     tape, and can be differentiated again. There is no list of backward functions. A product
 *     that the tape has already, or a gradient that it has but for a factor, is taken over. The
 *     weight gradients of an answer and of a loss on its explanation are one product (6.1.2).
 *  4. What a rule says is a table entry. Other tables read the same tape in other ways: guided
 *     backprop, B-cos explanations. Two more readings walk forwards: interval bounds, contextual
 *     decomposition. All of them make ordinary tensors.
 *  5. Memory is an arena: mark, work, release. Nothing is freed by the caller one by one; what is
 *     quick to make again is not kept, and the last sweep of a step frees what it has read.
 *  6. The first error stays on the tape as a sentence. Later operations return a poison tensor that
 *     reads as NaN, so checking once at the end of a step is enough; the optimiser refuses to step.
 *  7. A model is a function of a scope and a batch; weights are found by name, made on first use.
 *  8. Layers name their results ("layer3"); attribution finds them by name. No hooks.
 *  9. Random numbers come from a generator that you hold; the same seed gives the same bits, on one
 *     thread or many, with AVX-512 or with plain C (wherever fused multiply-add exists).
 * 10. All of it can be read top to bottom.
 *
 *
 * CONVENTIONS
 *
 *   xg_noun_verb for objects, xg_verb for operations, xg__ for what is private, XG_ for macros.
 *   Options are structs: all zero means the defaults that the comments name.
 *   Functions that make tensors never return NULL. Text passed in is copied.
 *   A tape belongs to one thread at a time. Parameters may be read by several tapes in several
 *   threads while nobody updates them. Values are read through xg_data, never through a field.
 *   References: "Rao 2023" is Studying How to Efficiently and Effectively Guide Models with
 *   Explanations (ICCV), "Heo 2023" is Use Perturbations when Learning from Explanations (NeurIPS).
 *
 *
 * OPTIONS AT COMPILE TIME        Define before the #include that has XG_IMPLEMENTATION.
 *
 *   XG_DOUBLE            double instead of float, scalar kernels: for proofs (define everywhere)
 *   XG_STATIC            everything static: a private copy (define everywhere)
 *   XG_API               what stands before every public declaration; default extern
 *   XG_NO_SIMD           scalar kernels only; or less: XG_NO_AVX512, _AVX2, _NEON, _WASM
 *   XG_NO_STDIO          no files: only the parsers that read from memory
 *   XG_HEADER            the name of this file if it is not "xguide.h" (it includes itself)
 *   XG_ASSERT(condition) checks of what must hold unless this file is wrong; default nothing
 *   -fopenmp             the default parallel_for becomes an OpenMP loop; else one thread, or yours
 *
 * At run time the environment variable XG_SIMD, or xg_config.simd, forces an instruction set.
 * -ffast-math is refused: it breaks NaN tests and the promise of equal bits.
 *
 *
 * HOW TO ADD AN OPERATION        Two places, about fifteen lines.
 *
 *   1. In [A5] a row of XG_OPS (name, number of operands, kind of kernel, whether it has a rule,
 *      formula), and the function's declaration.
 *   2. A room in [5]: the shape rule (checks, sets y->shape), the kernel (fills y->data), the
 *      public function (emits), and the gradient rule, written in public operations.
 *      A pointwise operation needs only the last two there, but in [3] its name in XG__MAPS or
 *      XG__ZIPS (3.0) and a vector expression (3.3).
 *   The compiler names what is missing, and tests/test_ops.c what is untested: every operation is
 *   checked against finite differences to third order. Ask of a rule: what kind is it?
 *
 *     pointwise    g * f'(x), written with operations; may use the result y
 *     selector     piecewise constant: no rule
 *     gated        linear in g, a selector in x: relu, clamp, max, min and gate
 *     linear pair  the partner: sum_to and expand, slice and pad, gather and scatter
 *     bilinear     itself with the other operand: mul, matmul
 *     trilinear    the other two: conv2d, conv2d_dx, conv2d_dw
 */
#ifndef XGUIDE_H
#define XGUIDE_H

/* ============================================================================================== *
 *  [A1] platform                                                                                 *
 * ============================================================================================== */

/* Patch: a fix that changes no documented behaviour. Minor: additions; old code compiles and means
 * the same, trained bits may change. Major: something public was renamed, removed or re-defined. */
#define XG_VERSION_MAJOR 0
#define XG_VERSION_MINOR 10
#define XG_VERSION_PATCH 1
#define XG_VERSION                                                                                 \
    XG__TEXT(XG_VERSION_MAJOR) "." XG__TEXT(XG_VERSION_MINOR) "." XG__TEXT(XG_VERSION_PATCH)
#define XG__TEXT(a)  XG__TEXT_(a)
#define XG__TEXT_(a) #a

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifndef XG_API
#if defined(XG_STATIC) && (defined(__GNUC__) || defined(__clang__))
#define XG_API static __attribute__((unused))
#elif defined(XG_STATIC)
#define XG_API static
#else
#define XG_API extern
#endif
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* The number type. `float` for work; `double` (and scalar kernels) with XG_DOUBLE, for proofs. */
#ifdef XG_DOUBLE
typedef double xg_real;
#else
typedef float xg_real;
#endif

typedef struct xg_tape   xg_tape;   /* owns every tensor made on it; one thread at a time         */
typedef struct xg_tensor xg_tensor; /* a value, how it was made, and nothing to free              */
typedef struct xg_params xg_params; /* named weights; outlive every tape                          */

/* Every tensor is n x c x h x w, row-major. Missing axes are 1. */
typedef struct xg_shape { int n, c, h, w; } xg_shape;

XG_API xg_shape    xg_shape4(int n, int c, int h, int w);  /* the four extents as a shape         */
XG_API size_t      xg_shape_size(xg_shape s);              /* number of elements, n*c*h*w         */
XG_API bool        xg_shape_same(xg_shape a, xg_shape b);  /* equal in all four extents           */
XG_API const char *xg_version(void);                       /* XG_VERSION of the compiled code     */

/* Why something failed. X(code, meaning) is the only list: enum, names and tests come from it. */
#define XG_ERRORS(X)                                                                               \
    X(OK,          "no error")                                                                     \
    X(MEMORY,      "out of memory")                                                                \
    X(SHAPE,       "shapes do not fit")                                                            \
    X(ARGUMENT,    "an argument is out of range")                                                  \
    X(NAME,        "no such name")                                                                 \
    X(RULE,        "the operation has no rule in this reading")                                    \
    X(TAPE,        "tensors of different tapes were mixed")                                        \
    X(NONFINITE,   "a value is NaN or infinite")                                                   \
    X(IO,          "a file could not be read or written")                                          \
    X(FORMAT,      "a file is malformed")                                                          \
    X(UNSUPPORTED, "the file or machine feature is not supported")

typedef enum xg_code {
#define X(code, meaning) XG_ERR_##code,
    XG_ERRORS(X)
#undef X
    XG_ERR_COUNT
} xg_code;

/* A code for programs and a sentence for people. Zero-initialised means no error. */
typedef struct xg_error { xg_code code; char text[244]; } xg_error;

XG_API const char *xg_code_name(xg_code code);     /* "SHAPE", ...                                */
XG_API const char *xg_code_meaning(xg_code code);  /* "shapes do not fit", ...                    */

/* Random numbers: a small counter generator (splitmix64). The state is the whole state: copy it,
 * save it, restore it. The same seed gives the same sequence on every machine. */
typedef struct xg_rng { uint64_t state; } xg_rng;

XG_API xg_rng   xg_rng_seed(uint64_t seed);               /* a generator; different seeds differ  */
XG_API uint64_t xg_rng_next(xg_rng *rng);                 /* 64 uniform bits                      */
XG_API double   xg_rng_uniform(xg_rng *rng);              /* uniform in [0,1)                     */
XG_API double   xg_rng_normal(xg_rng *rng);               /* standard normal                      */
XG_API int      xg_rng_below(xg_rng *rng, int n);         /* uniform integer in [0,n); 0 if n < 1 */
XG_API void     xg_rng_shuffle(xg_rng *rng, int *items, int count); /* Fisher-Yates, in place     */

/* ============================================================================================== *
 *  [A2] memory                                                                                   *
 * ============================================================================================== */

/* Convolutions with 3x3 weights and stride 1 can be computed with a quarter of the products (3.6).
 * Their last bits differ then, but not from machine to machine; and they borrow up to four times
 * the memory of their weights. */
typedef enum xg_winograd {
    XG_WINOGRAD_AUTO,                              /* where it is faster; never with XG_DOUBLE    */
    XG_WINOGRAD_NEVER,
    XG_WINOGRAD_ALWAYS                             /* wherever it is possible: for tests          */
} xg_winograd;

/* How a tape or a parameter store gets memory and threads. All zero means: malloc, one thread (or
 * OpenMP's threads when compiled with OpenMP), the best instruction set of the machine. */
typedef struct xg_config {
    void *(*alloc)(void *user, size_t bytes);      /* default malloc; may return NULL             */
    void  (*release)(void *user, void *memory);    /* default free                                */
    void   *memory_user;                           /* handed to both                              */
    void   *fixed;                                 /* use this buffer, which nobody else does,    */
    size_t  fixed_bytes;                           /* of so many bytes, and never allocate        */

    /* Calls run(context, task, worker) for every task in [0,tasks), in any order, on up to
     * `workers` threads; worker is in [0,workers) and no two calls that run at the same time share
     * it. Returns when all are done. Results never depend on it. */
    void  (*parallel_for)(void *user, int tasks, void (*run)(void *context, int task, int worker),
                          void *context);
    void   *parallel_user;                         /* handed to parallel_for                      */
    int     workers;                               /* default 1 (OpenMP: its maximum)             */

    const char *simd;  /* force "scalar", "neon", "wasm", "avx2" or "avx512"; NULL: environment
                          variable XG_SIMD, else the best that this machine runs */
    xg_winograd winograd;                          /* which convolutions are Winograd's           */
} xg_config;

/* What a tape used. Bytes are of payload and bookkeeping as handed out by the arena. */
typedef struct xg_stats {
    size_t bytes;       /* in use now */
    size_t peak;        /* the most in use at once; with packed weights an upper bound */
    size_t reserved;    /* taken from the allocator */
    size_t nodes;       /* tensors on the tape now */
    size_t reused;      /* parts of gradients that an earlier gradient had found (6.1.1) */
    size_t shared;      /* products asked for that the tape had already (4.7) */
    size_t joined;      /* weight gradients of two passes that were one product (6.1.2) */
    size_t packed;      /* products that read weights as an earlier one had packed them (4.12) */
    double flops;       /* multiply-adds x 2 of matmul and convolutions since the tape was made */
    size_t winograd;    /* convolutions computed by Winograd's algorithm since then */
} xg_stats;

/* ============================================================================================== *
 *  [A3] kernels                                                                                  *
 * ============================================================================================== */

XG_API const char *xg_simd_best(void);               /* the level this machine and build run best */
XG_API int         xg_simd_count(void);               /* how many levels this machine can run */
XG_API const char *xg_simd_name(int i);               /* the i-th of them, "scalar" first */
XG_API const char *xg_tape_simd(const xg_tape *tape); /* the level that a tape runs */

/* ============================================================================================== *
 *  [A4] tape                                                                                     *
 * ============================================================================================== */

/* A new tape; NULL only when there is no memory for it or config->simd cannot run here. */
XG_API xg_tape *xg_tape_new(const xg_config *config);
XG_API void     xg_tape_free(xg_tape *tape);         /* frees everything made on it; NULL is fine */

/* Everything made after a mark is gone after the release; memory stays reserved for the next step.
 *     xg_mark m = xg_tape_mark(t);  ... one training step ...  xg_tape_release(t, m); */
typedef struct xg__place { void *chunk, *spare; size_t used, bytes; unsigned marks; } xg__place;
typedef struct xg_mark {                                               /* opaque */
    xg__place place;
    void *names, *updates, *changes, *kept;
    xg_tensor *last;
} xg_mark;
XG_API xg_mark  xg_tape_mark(xg_tape *tape);
XG_API void     xg_tape_release(xg_tape *tape, xg_mark mark);
XG_API void     xg_tape_reset(xg_tape *tape);         /* releases everything and clears the error */
XG_API xg_stats xg_tape_stats(const xg_tape *tape);    /* see xg_stats */

/* The first error sticks to the tape; later operations return a poison tensor that reads as NaN. */
XG_API bool            xg_failed(const xg_tape *tape);      /* has anything gone wrong? */
XG_API const xg_error *xg_tape_error(const xg_tape *tape);  /* what, first */
XG_API void            xg_clear_error(xg_tape *tape);       /* carry on (after a release) */
/* For those who build on top: records an error, printf-style, unless there is one already. */
XG_API void            xg_fail(xg_tape *tape, xg_code code, const char *format, ...);

/* While this is on, what operations make is constant, as if detached, and what only gradients need
 * is not made: where the maxima of a max-pool stand. For targets and scores. The gradient of a loss
 * that was itself made so is an ARGUMENT error. Returns what was set before, to be set again:
 *     bool before = xg_no_grad(t, true);  target = net(&s, x);  xg_no_grad(t, before); */
XG_API bool xg_no_grad(xg_tape *tape, bool on);

/* Leaves: where data enters. Extents below 1 are a SHAPE error. */

/* A tensor of shape s with a copy of the s.n*s.c*s.h*s.w numbers at data; NULL: zeros. */
XG_API xg_tensor *xg_leaf(xg_tape *tape, xg_shape s, const xg_real *data);

/* The same without the copy: the leaf reads the caller's numbers where they lie. They must stay
 * there unchanged until it is released; no operation writes to them, and xg_leaf_data refuses the
 * leaf. Gradients and bits are those of xg_leaf. data NULL: an ARGUMENT error. Numbers that are not
 * aligned as xg_real are copied after all. */
XG_API xg_tensor *xg_leaf_borrow(xg_tape *tape, xg_shape s, const xg_real *data);

XG_API xg_tensor *xg_full(xg_tape *tape, xg_shape s, double value);    /* every element = value  */
XG_API xg_tensor *xg_scalar(xg_tape *tape, double value);              /* shape 1x1x1x1          */
XG_API xg_tensor *xg_randn(xg_tape *tape, xg_shape s, xg_rng *rng);    /* standard normal        */

/* [n,classes,1,1]: row i is 1 at label[i]. A label outside [0,classes) is an ARGUMENT error. */
XG_API xg_tensor *xg_one_hot(xg_tape *tape, const int *label, int n, int classes);

/* Values. On a failed tape they read as NaN. */

XG_API xg_shape       xg_shape_of(const xg_tensor *x);  /* its extents (poison: 1,1,1,1)         */
XG_API size_t         xg_size(const xg_tensor *x);      /* its number of elements                */
XG_API xg_tape       *xg_tape_of(const xg_tensor *x);   /* the tape that owns it                 */
XG_API double         xg_item(xg_tensor *x);            /* the first element                     */

/* All values, in row-major order, valid until x is released. On a failed tape the pointer leads to
 * one NaN: check xg_failed before walking further. */
XG_API const xg_real *xg_data(xg_tensor *x);

/* To write a leaf before anything is computed from it. NULL and an ARGUMENT error if x was computed
 * or borrows its numbers; NULL on a failed tape. */
XG_API xg_real       *xg_leaf_data(xg_tensor *leaf);

/* Copies at most count values to out (all NaN on a failed tape); returns how many x has (then
 * 0). */
XG_API size_t         xg_read(xg_tensor *x, xg_real *out, size_t count);

/* Names: layers name what they make ("layer3"), so that anyone can find it later on the tape. */
XG_API xg_tensor *xg_name(xg_tensor *x, const char *name);             /* returns x */
XG_API xg_tensor *xg_find(xg_tape *tape, const char *name);            /* the latest of that name,
                          else a NAME error that lists the names there are */
XG_API const char *xg_name_of(const xg_tensor *x);                     /* its name, or "" */

/* ============================================================================================== *
 *  [A5] operations: all differentiable to any order unless marked 'selector' (gradient zero)      *
 * ============================================================================================== */

/* 5.0 The list of all primitive operations: X(name, operands, kernel, gradient, formula).
 *     kernel    map: pointwise, zip: broadcasting pair, fan: repetition, sum: a sum over axes
 *               (these wait until their numbers are asked for), view: the operand's own numbers,
 *               own: anything else, with xg__shape_NAME and xg__run_NAME; late: such, that waits
 *     gradient  rule: XG__RULE(NAME), none: piecewise constant */
#define XG_OPS(X)                                                                                  \
    X(leaf,           0, own, none, "data")                                                        \
    X(exp,            1, map, rule, "e^x")                                                         \
    X(log,            1, map, rule, "ln x")                                                        \
    X(sqrt,           1, map, rule, "sqrt x")                                                      \
    X(pow,            1, map, rule, "x^p")                                                         \
    X(sigmoid,        1, map, rule, "1/(1+e^-x)")                                                  \
    X(tanh,           1, map, rule, "tanh x")                                                      \
    X(softplus,       1, map, rule, "ln(1+e^x)")                                                   \
    X(abs,            1, map, rule, "|x|")                                                         \
    X(affine,         1, map, rule, "p x + q")                                                     \
    X(relu,           1, map, rule, "max(x,0)")                                                    \
    X(clamp,          1, map, rule, "min(max(x,p),q)")                                             \
    X(sign,           1, map, none, "-1, 0 or 1")                                                  \
    X(step,           1, map, none, "x > 0")                                                       \
    X(within,         1, map, none, "p <= x <= q")                                                 \
    X(add,            2, zip, rule, "a + b")                                                       \
    X(sub,            2, zip, rule, "a - b")                                                       \
    X(mul,            2, zip, rule, "a b")                                                         \
    X(div,            2, zip, rule, "a / b")                                                       \
    X(max,            2, zip, rule, "a >= b ? a : b")                                              \
    X(min,            2, zip, rule, "a <= b ? a : b")                                              \
    X(less,           2, zip, none, "a < b")                                                       \
    X(gate,           2, zip, rule, "x > 0 ? g : 0")                                               \
    X(sum_to,         1, sum, rule, "sum over axes")                                               \
    X(expand,         1, fan, rule, "repeat along axes")                                           \
    X(reshape,        1, view, rule, "same numbers, other extents")                                \
    X(permute,        1, own, rule, "reorder axes")                                                \
    X(flip,           1, own, rule, "reverse axes")                                                \
    X(slice,          1, own, rule, "cut out a box")                                               \
    X(pad,            1, own, rule, "place in zeros")                                              \
    X(concat,         2, own, rule, "join along an axis")                                          \
    X(matmul,         2, own, rule, "sum_k A[i,k] B[k,j]")                                         \
    X(conv2d,         2, own, rule, "T(x,w,.)")                                                    \
    X(conv2d_dx,      2, own, rule, "T(.,w,g)")                                                    \
    X(conv2d_dw,      2, own, rule, "T(x,.,g)")                                                    \
    X(avgpool,        1, own, rule, "mean over windows")                                           \
    X(avgpool_t,      1, own, rule, "its transpose")                                               \
    X(argpool,        1, late, none, "where each window's maximum stands")                         \
    X(upsample,       1, own, rule, "bilinear interpolation")                                      \
    X(upsample_t,     1, own, rule, "its transpose")                                               \
    X(gather,         2, late, rule, "x[index]")                                                   \
    X(scatter,        2, late, rule, "its transpose")                                              \
    X(argmax,         1, own, none, "first best channel")                                          \
    X(max_to,         1, own, rule, "maximum over axes")                                           \
    X(topk_threshold, 1, own, none, "between k-th and next largest")                               \
    X(softmax,        1, own, rule, "e^x / sum_c e^x")                                             \
    X(log_softmax,    1, own, rule, "x - ln sum_c e^x")                                            \
    X(detach,         1, view, none, "x, a constant from here on")                                 \
    X(barrier,        1, view, rule, "x, a constant to explanations")

typedef enum xg_op {
#define X(name, operands, kernel, gradient, formula) XG_OP_##name,
    XG_OPS(X)
#undef X
    XG_OP_COUNT
} xg_op;

XG_API const char *xg_op_name(xg_op op);      /* "conv2d" */
XG_API const char *xg_op_formula(xg_op op);   /* "T(x,w,.)" */
XG_API xg_op       xg_op_of(const xg_tensor *x); /* how x was made */

/* All of these return a new tensor on the operands' tape. They fail with SHAPE when extents do
 * not fit, ARGUMENT when a number is out of range, MEMORY, or TAPE when operands' tapes differ;
 * then the result is poison. "Selector" marks what is piecewise constant: its gradient is zero. */

/* 5.1 Pointwise: the result has the shape of x. */
XG_API xg_tensor *xg_exp(xg_tensor *x);                          /* e^x */
XG_API xg_tensor *xg_log(xg_tensor *x);                          /* ln x */
XG_API xg_tensor *xg_sqrt(xg_tensor *x);                      /* square root; steep at 0: add eps */
XG_API xg_tensor *xg_pow(xg_tensor *x, double p);              /* x^p; x > 0, or p a whole number */
XG_API xg_tensor *xg_sigmoid(xg_tensor *x);                      /* 1/(1+e^-x) */
XG_API xg_tensor *xg_tanh(xg_tensor *x);                         /* hyperbolic tangent */
XG_API xg_tensor *xg_softplus(xg_tensor *x);                     /* ln(1+e^x), without overflow */
XG_API xg_tensor *xg_abs(xg_tensor *x);                        /* |x|; derivative sign(x), 0 at 0 */
XG_API xg_tensor *xg_affine(xg_tensor *x, double a, double b);   /* a x + b */
XG_API xg_tensor *xg_neg(xg_tensor *x);                          /* -x */
XG_API xg_tensor *xg_square(xg_tensor *x);                       /* x x */
XG_API xg_tensor *xg_relu(xg_tensor *x);                         /* max(x,0); derivative 0 at 0 */
XG_API xg_tensor *xg_clamp(xg_tensor *x, double lo, double hi);  /* derivative 1 at lo and hi */
XG_API xg_tensor *xg_sign(xg_tensor *x);                         /* -1, 0 or 1; selector */
XG_API xg_tensor *xg_step(xg_tensor *x);                       /* 1 where x > 0, else 0; selector */

/* 5.2 Pairs. Each axis of a and b is equal, or 1 in one of them and repeats: the result has the
 *     larger extent. Gradients are summed back to the operand's own shape. */
XG_API xg_tensor *xg_add(xg_tensor *a, xg_tensor *b);            /* a + b */
XG_API xg_tensor *xg_sub(xg_tensor *a, xg_tensor *b);            /* a - b */
XG_API xg_tensor *xg_mul(xg_tensor *a, xg_tensor *b);            /* a b */
XG_API xg_tensor *xg_div(xg_tensor *a, xg_tensor *b);            /* a / b */
XG_API xg_tensor *xg_max(xg_tensor *a, xg_tensor *b);           /* the larger; a tie belongs to a */
XG_API xg_tensor *xg_min(xg_tensor *a, xg_tensor *b);          /* the smaller; a tie belongs to a */
XG_API xg_tensor *xg_less(xg_tensor *a, xg_tensor *b);           /* 1 where a < b; selector */
XG_API xg_tensor *xg_gate(xg_tensor *g, xg_tensor *x);           /* g where x > 0, else 0; linear in
                                                                    g, a selector in x */

/* 5.3 Shape. */
XG_API xg_tensor *xg_sum_to(xg_tensor *x, xg_shape s);          /* sums every axis that is 1 in s */
XG_API xg_tensor *xg_mean_to(xg_tensor *x, xg_shape s);          /* the same, as a mean */
XG_API xg_tensor *xg_expand(xg_tensor *x, xg_shape s);           /* repeats axes of extent 1 to s */
XG_API xg_tensor *xg_reshape(xg_tensor *x, xg_shape s);          /* same elements, same order */
XG_API xg_tensor *xg_flatten(xg_tensor *x);                      /* [n, c*h*w, 1, 1] */
XG_API xg_tensor *xg_sum(xg_tensor *x);                          /* of everything: 1x1x1x1 */
XG_API xg_tensor *xg_mean(xg_tensor *x);                         /* of everything: 1x1x1x1 */
XG_API xg_tensor *xg_dot(xg_tensor *a, xg_tensor *b);            /* sum of a b: 1x1x1x1 */
XG_API xg_tensor *xg_concat(xg_tensor *a, xg_tensor *b, int axis);      /* joined along axis 0..3 */
XG_API xg_tensor *xg_flip(xg_tensor *x, bool n, bool c, bool h, bool w); /* reverses those axes */

/* Axis i of the result is axis (n,c,h,w)[i] of x: (0,1,3,2) transposes every plane. */
XG_API xg_tensor *xg_permute(xg_tensor *x, int n, int c, int h, int w);

/* The box of extents s that starts at `from`, counted from 0; and x placed at `from` in zeros of
 * s. */
XG_API xg_tensor *xg_slice(xg_tensor *x, xg_shape from, xg_shape s);
XG_API xg_tensor *xg_pad(xg_tensor *x, xg_shape from, xg_shape s);

/* 5.4 Matrix product of the last two axes, batched over n and c, which broadcast:
 *         y[n,c,i,j] = sum_k A[n,c,i,k] B[n,c,k,j],   A = a or its transpose, B likewise. */
XG_API xg_tensor *xg_matmul(xg_tensor *a, xg_tensor *b, bool transpose_a, bool transpose_b);

/* 5.5 The convolution trio. One trilinear form T(x,w,g) = <g, conv(x,w)> with one argument left
 *     out: each is the derivative of the other two. x is [n,c,h,w], w [o,c/groups,kh,kw] and g,
 *     the result of conv2d, [n,o,oh,ow] with oh = (h + 2 pad - dilation (kh-1) - 1)/stride + 1. */
typedef struct xg_window {
    int kh, kw;      /* kernel extents, for pooling; default 1. Convolutions take them from w */
    int stride;      /* default 1 */
    int pad;         /* zeros on every side; default 0 */
    int dilation;    /* default 1 */
    int groups;      /* default 1 */
} xg_window;
XG_API xg_tensor *xg_conv2d(xg_tensor *x, xg_tensor *w, xg_window k);             /* shaped as g */
XG_API xg_tensor *xg_conv2d_dx(xg_tensor *w, xg_tensor *g, xg_window k, xg_shape x);  /* shaped x */
XG_API xg_tensor *xg_conv2d_dw(xg_tensor *x, xg_tensor *g, xg_window k, xg_shape w);  /* shaped w */

/* 5.6 Windows. Average pooling counts padded zeros: its divisor is always kh*kw. In max pooling the
 *     padding never wins, and the first maximum of a window takes its gradient; a window with no
 *     number of the input (dilated, it may step over all of them) is a SHAPE error. */
XG_API xg_tensor *xg_avgpool(xg_tensor *x, xg_window k);
XG_API xg_tensor *xg_avgpool_t(xg_tensor *g, xg_window k, xg_shape x);   /* its transpose */
XG_API xg_tensor *xg_argpool(xg_tensor *x, xg_window k);   /* where in its h*w plane each window's
                                                              maximum stands; selector */
XG_API xg_tensor *xg_maxpool(xg_tensor *x, xg_window k);   /* gather(x, argpool(x)) */
XG_API xg_tensor *xg_global_avgpool(xg_tensor *x);         /* [n,c,1,1] */

/* Bilinear interpolation to h x w at half-pixel centres, edges repeated (align_corners = false). */
XG_API xg_tensor *xg_upsample(xg_tensor *x, int h, int w);
XG_API xg_tensor *xg_upsample_t(xg_tensor *g, xg_shape x);               /* its transpose */

/* 5.7 Selection. An index is a number stored as a number; it counts within an h*w plane. Outside it
 *     is an ARGUMENT error: at once if it is data, else when numbers are asked for. The n and c of
 *     an index tensor may be 1: the same selection for every sample, every channel. */
XG_API xg_tensor *xg_gather(xg_tensor *x, xg_tensor *index);        /* y[n,c,p] = x[n,c,index[p]] */
XG_API xg_tensor *xg_scatter(xg_tensor *g, xg_tensor *index, xg_shape x); /* its transpose: adds */
XG_API xg_tensor *xg_argmax(xg_tensor *x);             /* [n,1,h,w]: first best channel; selector */
XG_API xg_tensor *xg_max_to(xg_tensor *x, xg_shape s);    /* maximum over every axis that is 1 in s;
                                                              ties share the gradient equally */
/* [count,c,h,w]: samples of x, in the order given; one may come twice. An index outside [0,n) is an
 * ARGUMENT error. */
XG_API xg_tensor *xg_take(xg_tensor *x, const int *sample, int count);
/* [n,1,1,1]: midway between the k-th and the (k+1)-th largest number of each sample, or if k is all
 * of them below the last; selector. NaN counts as the largest. */
XG_API xg_tensor *xg_topk_threshold(xg_tensor *x, int k);
/* [n,1,1,1]: logits[i, label[i]] of logits [n,k,1,1]. A bad label is an ARGUMENT error. */
XG_API xg_tensor *xg_pick(xg_tensor *logits, const int *label);
/* [n,1,1,1]: of two classes' logits [n,2,1,1], the label's less the other's. Their cross-entropy is
 * the mean of softplus(-margin): a loss and an explanation of one margin share a pass (6.1.1) and
 * weight gradients (6.1.2). */
XG_API xg_tensor *xg_margin(xg_tensor *logits, const int *label);

/* 5.8 Normalising and scoring. */
XG_API xg_tensor *xg_softmax(xg_tensor *x);                /* over channels */
XG_API xg_tensor *xg_log_softmax(xg_tensor *x);            /* over channels */
/* (x - mean) / sqrt(variance + eps); mean and biased variance over every axis that is 1 in s. */
XG_API xg_tensor *xg_normalise(xg_tensor *x, xg_shape s, double eps);
/* Of logits [n,k,1,1] against labels [n]: the mean over n; with class_weight [k] the weighted mean
 * sum w_y l / sum w_y. Scalar. */
XG_API xg_tensor *xg_cross_entropy(xg_tensor *logits, const int *label, const double *class_weight);
/* Mean over everything of max(z,0) - z t + ln(1 + e^-|z|). Scalar. */
XG_API xg_tensor *xg_bce_with_logits(xg_tensor *logits, xg_tensor *target);

/* 5.9 Control. */
XG_API xg_tensor *xg_detach(xg_tensor *x);   /* x as a constant: no reading passes */
/* x, constant only to readings under explain rules: how the dynamic weight of a B-cos unit is held
 * still while an explanation is made, yet trained through afterwards (Rao 2023, 3.1). */
XG_API xg_tensor *xg_barrier(xg_tensor *x);

/* ============================================================================================== *
 *  [A6] readings                                                                                 *
 * ============================================================================================== */

/* A rule: given y, the index i of one of its operands and the cotangent g of y (shaped like y), the
 * cotangent of that operand as an expression in operations; NULL stands for zero. The result may
 * have the shape of a broadcast: the sweep sums it back. */
typedef xg_tensor *(*xg_vjp)(xg_tensor *y, int i, xg_tensor *g);

/* How to read a tape backwards: one rule for each operation. Take a table, replace entries, read
 * with it; rules make ordinary tensors, so whatever is read can be differentiated again. */
typedef struct xg_rules { xg_vjp vjp[XG_OP_COUNT]; } xg_rules;

XG_API xg_rules xg_rules_plain(void);    /* the derivative */
XG_API xg_rules xg_rules_explain(void); /* barriers are constants: B-cos contributions (Rao 2023) */
XG_API xg_rules xg_rules_guided(void);  /* ReLU drops negative cotangents too (Springenberg 2015) */
XG_API xg_rules xg_rules_deconv(void);   /* ReLU applied to the cotangent alone (Zeiler 2014) */

/* d sum(y) / dx, shaped like x; zeros where y does not depend on x. Differentiable. */
XG_API xg_tensor *xg_grad(xg_tensor *y, xg_tensor *x);

/* The same for several x in one sweep: out[i] = d <seed, y> / d x[i].
 * seed: shaped like y, NULL for ones. rules: NULL for the derivative. */
XG_API void xg_grads(xg_tensor *y, xg_tensor *seed, xg_tensor *const *x, int count,
                     const xg_rules *rules, xg_tensor **out);

/* Interval bounds: for every x between lo and hi (both shaped like x), y lies between *out_lo
 * and *out_hi (Gowal 2018; IBP-Ex of Heo 2023). Knows affine maps, products with constants,
 * convolution, pooling and monotone functions; anything else between x and y is a RULE error
 * that names it. With lo = xg_sub(x, r) and hi = xg_add(x, r) the first layer's centre is not
 * computed: it is what the net made of x. */
XG_API void xg_bounds(xg_tensor *y, xg_tensor *x, xg_tensor *lo, xg_tensor *hi,
                      xg_tensor **out_lo, xg_tensor **out_hi);

/* Contextual decomposition (Murdoch 2018; CDEP, Rieger 2020): splits y into beta, what comes
 * from `part` of x (shaped like x, say x times a mask), and gamma, the rest; beta + gamma = y.
 * Knows ReLU nets of convolution, dense, addition, pooling; anything else is a RULE error that
 * names it. */
XG_API void xg_split(xg_tensor *y, xg_tensor *x, xg_tensor *part,
                     xg_tensor **beta, xg_tensor **gamma);

/* Checks derivatives. f builds a tensor of any shape from `count` (at most 16) inputs on their
 * tape. For every order from 1 to `orders` (at most 4) the derivative along random directions is
 * compared with a central difference of the order below. Returns the worst |a - b| / max(1, |a|,
 * |b|); NaN on failure. For XG_DOUBLE builds; step 0 means 1e-5. Leaves the tape as it was. */
typedef xg_tensor *(*xg_function)(xg_tensor *const *x, int count, void *user);
XG_API double xg_gradcheck(xg_function f, void *user, xg_tensor *const *x, int count, int orders,
                           double step, xg_rng *rng);

/* ============================================================================================== *
 *  [A7] models                                                                                   *
 * ============================================================================================== */

/* 7.1 Parameters: numbers with names, that outlive tapes. A store may serve several tapes in
 *     several threads while nobody updates it. Its first error sticks, like a tape's. */
XG_API xg_params      *xg_params_new(const xg_config *config);    /* NULL: no memory */
XG_API void            xg_params_free(xg_params *params);         /* NULL is fine */
XG_API xg_params      *xg_params_clone(const xg_params *params);  /* values, no optimiser state */
XG_API const xg_error *xg_params_error(const xg_params *params);  /* what went wrong first */
XG_API void            xg_params_clear_error(xg_params *params);  /* carry on */

/* Entries, numbered in the order in which they came: weights, and buffers that are not trained. */
XG_API int         xg_params_count(const xg_params *params);            /* how many */
XG_API const char *xg_params_name(const xg_params *params, int i);     /* "layer1.0.conv1.weight" */
XG_API xg_shape    xg_params_shape(const xg_params *params, int i);     /* its extents */
XG_API xg_real    *xg_params_data(xg_params *params, int i);   /* its values, to read; to write when
                                                    tapes have released what was computed of them */
XG_API bool        xg_params_trainable(const xg_params *params, int i); /* no buffer, not frozen */
XG_API int         xg_params_find(const xg_params *params, const char *name);   /* number, or -1 */
XG_API size_t      xg_params_size(const xg_params *params);           /* trainable numbers in all */

/* Number of a new entry of zeros, or of the old one with that name and shape. -1 and an error on
 * the store when the shapes differ or memory is short. */
XG_API int  xg_params_add(xg_params *params, const char *name, xg_shape s, bool trainable);
/* Weights whose names start with prefix are (frozen) left alone by optimisers; "" means all. */
XG_API void xg_params_freeze(xg_params *params, const char *prefix, bool frozen);

/* Where a model is being built: tape, weights, mode, and the prefix of names. */
typedef struct xg_scope {
    xg_tape   *tape;
    xg_params *params;
    xg_rng    *rng;          /* draws first weights and dropout masks */
    bool       train;        /* batch statistics and dropout on */
    void      *user;         /* for your model functions */
    char       prefix[96];   /* "layer1.0." while inside that block */
} xg_scope;

/* The outermost scope, and those inside it. */
XG_API xg_scope xg_scope_new(xg_tape *tape, xg_params *params, xg_rng *rng, bool train);
XG_API xg_scope xg_in(const xg_scope *s, const char *name);            /* inside "prefix.name." */
XG_API xg_scope xg_in_at(const xg_scope *s, const char *name, int i);  /* inside "prefix.name.i." */

/* A model: from a batch to logits. It is called anew for every batch. */
typedef xg_tensor *(*xg_net)(xg_scope *s, xg_tensor *x);

/* How a weight starts; fan_in is c*h*w of its shape, fan_out n*h*w. */
typedef enum xg_init {
    XG_INIT_ZERO, XG_INIT_ONE, XG_INIT_IDENTITY,
    XG_INIT_KAIMING,          /* normal, sqrt(2/fan_in) */
    XG_INIT_KAIMING_FAN_OUT,  /* normal, sqrt(2/fan_out) */
    XG_INIT_XAVIER,           /* uniform, +-sqrt(6/(fan_in+fan_out)) */
    XG_INIT_LECUN_UNIFORM     /* uniform, +-1/sqrt(fan_in): PyTorch's default */
} xg_init;

/* The weight "prefix + name" as a leaf, made on first use; one leaf a tape, however often it is
 * asked for. SHAPE error if it exists with other extents. */
XG_API xg_tensor *xg_param(xg_scope *s, const char *name, xg_shape shape, xg_init init,
                           double gain);
/* The same for numbers that are not trained (running statistics). */
XG_API xg_tensor *xg_buffer(xg_scope *s, const char *name, xg_shape shape, xg_init init);
/* The leaves of the trainable weights that this tape has used, in store order. Writes at most max,
 * returns how many there are. */
XG_API int xg_params_leaves(xg_params *params, xg_tape *tape, xg_tensor **out, int max);

/* 7.2 Layers take a scope, the layer's name, the input. Weights are called as in PyTorch:
 *     NAME.weight, NAME.bias, NAME.running_mean, NAME.running_var. Options may be NULL. */
typedef struct xg_conv_options {
    xg_window window;         /* kh, kw, stride, pad, dilation, groups */
    bool      bias;           /* add a bias, one a channel */
    xg_init   init;           /* default Kaiming */
    double    gain;           /* multiplies the first standard deviation; default 1 */
    bool      zero_init;      /* start at zero */
} xg_conv_options;
/* While not s->train, what follows (batch norm, a shortcut, ReLU) is done with it, and only the
 * last result is kept. To read its own numbers, or to train the norm behind it, runs it again: who
 * trains on running statistics sets xg_norm_options.frozen, and s->train. */
XG_API xg_tensor *xg_conv(xg_scope *s, const char *name, xg_tensor *x, int channels,
                          const xg_conv_options *o);
/* Flattens x to [n,k] and multiplies by weight [features,k]; result [n,features,1,1]. */
XG_API xg_tensor *xg_dense(xg_scope *s, const char *name, xg_tensor *x, int features, bool bias);

/* Batch norm over n, h, w. While s->train: batch statistics (biased variance), and the running ones
 * are updated once the optimiser's step succeeds (unbiased variance, as PyTorch); else the running
 * statistics. Exact to any order in both modes. */
typedef struct xg_norm_options {
    double eps;               /* default 1e-5 */
    double momentum;          /* of the running statistics; default 0.1 */
    bool   uncentred;         /* BNU of B-cos nets: no mean, no bias, biased running variance */
    bool   frozen;            /* running statistics even when training */
    bool   zero_gain;         /* start the weight at 0 (last norm of a residual branch) */
} xg_norm_options;
XG_API xg_tensor *xg_batch_norm(xg_scope *s, const char *name, xg_tensor *x,
                                const xg_norm_options *o);
/* While s->train: zeroes each number with probability p, scales the rest by 1/(1-p). */
XG_API xg_tensor *xg_dropout(xg_scope *s, xg_tensor *x, double p);

/* B-cos units (Boehle 2022; Rao 2023, 3.1): out = |cos(x,w)|^(B-1) w.x / |w|, no bias. |x| is taken
 * as sqrt(sum x^2 + 1e-6) over the patch. */
typedef struct xg_bcos_options {
    xg_window window;         /* as in xg_conv_options */
    double    b;              /* the exponent B; default 2 */
    int       maxout;         /* candidates for each output, the largest wins; default 1 */
    bool      detach;         /* detach the dynamic weight (a variant; not Rao 2023) */
} xg_bcos_options;
XG_API xg_tensor *xg_bcos_conv(xg_scope *s, const char *name, xg_tensor *x, int channels,
                               const xg_bcos_options *o);
XG_API xg_tensor *xg_bcos_dense(xg_scope *s, const char *name, xg_tensor *x, int features,
                                const xg_bcos_options *o);
/* Pictures for B-cos nets: [r,g,b] in [0,1] becomes [r,g,b,1-r,1-g,1-b]. */
XG_API xg_tensor *xg_bcos_input(xg_tensor *x);

/* 7.3 Networks. Each names its stages on the tape ("input", "layer1" .., and "features", the last
 *     maps before the classifier) and returns logits [n,classes,1,1]. */
typedef enum xg_family {
    XG_FAMILY_PLAIN,
    XG_FAMILY_BCOS,           /* B-cos units, uncentred norm, no ReLU (Rao 2023) */
    XG_FAMILY_X               /* no biases but the classifier's: integrated gradients in one pass,
                                 since they equal input times gradient (Hesse 2021) */
} xg_family;

typedef struct xg_mlp_options {
    int hidden;               /* width of hidden layers; default 512 */
    int layers;               /* hidden layers; default 2 */
    int classes;              /* default 10 */
} xg_mlp_options;
XG_API xg_tensor *xg_mlp(xg_scope *s, xg_tensor *x, const xg_mlp_options *o);

typedef struct xg_cnn_options {
    int  width;               /* channels of the first convolution, then 2x, 4x; default 16 */
    int  layers;              /* 3x3 convolutions, each with ReLU and 2x2 max pooling; default 3 */
    int  hidden;              /* width of a dense layer before the classes; default none */
    int  classes;             /* default 10 */
    bool batch_norm;          /* after each convolution */
    bool global_pool;         /* average the plane before the classifier */
} xg_cnn_options;
XG_API xg_tensor *xg_cnn(xg_scope *s, xg_tensor *x, const xg_cnn_options *o);

/* ResNets with torchvision's names (He 2016). */
typedef struct xg_resnet_options {
    int       depth;          /* 18, 34, 50, or for 32x32 pictures 20, 32, 44, 56; default 18 */
    int       classes;        /* default 1000, or 10 for the small depths */
    xg_family family;         /* plain, B-cos, or bias-free with Fixup's start */
    int       stages;         /* stages to keep before pooling and fc; default all */
    bool      folded;         /* norms folded into convolutions with bias */
    bool      small_input;    /* depths 18, 34, 50 with a 3x3 stem and no first pooling */
    bool      frozen_norm;    /* running statistics even when training */
    double    logit_bias;     /* B-cos: added to the logits; default ln(.001/.999) */
} xg_resnet_options;
XG_API xg_tensor *xg_resnet(xg_scope *s, xg_tensor *x, const xg_resnet_options *o);

/* SqueezeNet 1.1 with 1000 classes (Iandola 2016). Input BGR in 0..255 less 104, 117, 123; names of
 * the Caffe model. */
XG_API xg_tensor *xg_squeezenet(xg_scope *s, xg_tensor *x);
/* MobileNetV2 1.0 with 1001 classes, index 0 the background (Sandler 2018). Norms folded, names
 * c00 .. c52, input in [-1,1], "same" padding. */
XG_API xg_tensor *xg_mobilenet_v2(xg_scope *s, xg_tensor *x);

/* 7.4 Optimisers, with the update rules of PyTorch. All zero is SGD at 0.01. */
typedef enum xg_optim_kind { XG_SGD, XG_ADAM, XG_ADAMW } xg_optim_kind;
typedef enum xg_schedule { XG_CONSTANT, XG_STEP, XG_COSINE } xg_schedule;

typedef struct xg_optim {
    xg_optim_kind kind;       /* default SGD */
    double lr;                /* default 0.01 (SGD), 0.001 (Adam, AdamW) */
    double momentum;          /* SGD; default 0 */
    bool   nesterov;          /* SGD */
    double beta1, beta2, eps; /* Adam; defaults 0.9, 0.999, 1e-8 */
    double weight_decay;      /* added to the gradient (SGD, Adam), or decoupled (AdamW) */
    double clip_norm;         /* shrinks gradients until their joint norm is this; default off */

    xg_schedule schedule;     /* of the rate over steps */
    int    warmup;            /* steps of linear warm-up; default 0 */
    int    total;             /* steps of the whole run (cosine) */
    int    every;             /* steps between drops (step) */
    double factor;            /* of a drop; default 0.1 */

    const char *only;         /* update only weights whose names start so; default all */
    const char *slot;         /* names this optimiser's state in the store, so that several can work
                                 on one store; default "optim" */
} xg_optim;

/* One training step: the gradient of loss (a scalar) for every trainable weight on its tape,
 * clipping, update, running statistics. All or nothing: on a failed tape, or when the loss or a
 * gradient is not finite (NONFINITE, on the tape), or without memory, nothing changes. */
XG_API xg_code xg_optim_step(const xg_optim *o, xg_params *params, xg_tensor *loss);
/* The same with gradients in hand: grad[i] of leaf[i], leaves as from xg_params_leaves. */
XG_API xg_code xg_optim_apply(const xg_optim *o, xg_params *params, xg_tensor *const *leaf,
                              xg_tensor *const *grad, int count);
XG_API double  xg_optim_lr(const xg_optim *o, int64_t step);        /* the rate at a step, from 0 */
XG_API int64_t xg_optim_steps(const xg_optim *o, const xg_params *params); /* steps taken so far */

/* ============================================================================================== *
 *  [A8] attribute                                                                                *
 * ============================================================================================== */

/* 8.1 Gradient family. `score` is what is explained, any tensor: its sum is differentiated. Take
 *     xg_pick(logits, label); summed over a batch it explains every sample by itself, except that
 *     batch statistics couple samples. u is the input, or any tensor found by name. The map is
 *     [n,1,h,w] with u's h and w, signed, and differentiable with nothing detached. */
XG_API xg_tensor *xg_gradient(xg_tensor *score, xg_tensor *u);         /* sum_c ds/du_c */
XG_API xg_tensor *xg_guided_backprop(xg_tensor *score, xg_tensor *u);  /* sum_c, guided rules */
XG_API xg_tensor *xg_deconvnet(xg_tensor *score, xg_tensor *u);        /* sum_c, deconv rules */
/* sum_c u_c ds/du_c (Rao 2023, 3.1). On a bias-free net these are integrated gradients (2.2). */
XG_API xg_tensor *xg_input_x_gradient(xg_tensor *score, xg_tensor *u);
/* The same under explain rules: contributions in a B-cos net; they add up to the logit less its
 * bias in eval mode (Rao 2023, 3.1). */
XG_API xg_tensor *xg_bcos_map(xg_tensor *score, xg_tensor *u);

/* relu(sum_c a_c u_c) with a_c the mean of ds/du_c over the plane (Selvaraju 2017). */
typedef struct xg_grad_cam_options {
    bool stop_gradient_weights; /* a_c as a constant (RRR-G, HINT code); default differentiable */
    bool keep_negative;           /* without the relu */
} xg_grad_cam_options;
XG_API xg_tensor *xg_grad_cam(xg_tensor *score, xg_tensor *u, const xg_grad_cam_options *o);

/* 8.2 Path family. Integrated gradients (Sundararajan 2017) of net's logits[label] along the
 *     line from a baseline to x, midpoint rule, summed over channels: a leaf [n,1,h,w]. A few
 *     steps at a time: the memory does not depend on their number. */
typedef struct xg_path_options {
    int        steps;             /* default 32 */
    xg_tensor *baseline;          /* shaped like x; default zeros */
    int        batch;             /* pictures in one pass of the net, default 8: as many steps of
                                     x's n as fit. In training always one step; give 1 where a
                                     batch's samples know of each other in evaluation, too */
} xg_path_options;
XG_API xg_tensor *xg_integrated_gradients(xg_scope *s, xg_net net, xg_tensor *x, const int *label,
                                          const xg_path_options *o);
/* Training through them: out[i] = d <cotangent, map> / d leaf[i] for weights' leaves, in a second
 * sweep over the steps with the same constant memory. Take the loss on the leaf above, and its
 * gradient as cotangent. out are leaves. */
XG_API void xg_integrated_gradients_vjp(xg_scope *s, xg_net net, xg_tensor *x, const int *label,
                                        const xg_path_options *o, xg_tensor *cotangent,
                                        xg_tensor *const *leaf, int count, xg_tensor **out);

/* 8.3 Post-processing of a map [n,1,h,w], in this order (the order matters: the maximum is that of
 *     the layer's own resolution). */
typedef struct xg_post {
    bool positive;     /* max(A, 0) */
    bool normalise;    /* A / max|A| a sample, the maximum not detached; a map of zeros stays */
    int  h, w;         /* bilinear up-sampling to this; 0: none */
} xg_post;
XG_API xg_tensor *xg_postprocess(xg_tensor *map, const xg_post *o);

/* ============================================================================================== *
 *  [A9] guide                                                                                    *
 * ============================================================================================== */

/* 9.1 Localisation losses (Rao 2023, eq. 3-6; the released code where paper and code differ). A
 *     is a map, A+ = max(A,0), A^ = A/max|A|, M a mask, 1 inside. */
typedef enum xg_loss {
    XG_LOSS_ENERGY,    /* 1 - sum M A+ / sum A+; where sum A+ < 1e-7: 1 - sum M A+ */
    XG_LOSS_L1,        /* mean |M - A^+| */
    XG_LOSS_PPCE,      /* -mean over M of ln A^+, the logarithm floored at -100 */
    XG_LOSS_RRR        /* RRR*: sum (1-M) A^^2 */
} xg_loss;

typedef struct xg_guide_options {
    xg_loss        loss;
    const xg_real *weight;   /* [n]: what each sample counts, 0 without annotation; default all 1 */
    bool           mean;       /* divide by the number of samples that count; default: sum, as the
                                  published lambdas assume */
    bool           raw;        /* the map is post-processed already */
} xg_guide_options;

XG_API xg_post     xg_loss_post(xg_loss loss); /* the post-processing it wants, with h = w = 0 */
XG_API const char *xg_loss_name(xg_loss loss);   /* "energy", "l1", "ppce", "rrr" */

/* The loss of a map [n,1,h,w] against a mask [n,1,H,W]: post-processed as the loss wants,
 * up-sampled to H x W. Scalar, differentiable, finite for empty masks (PPCE skips them) and maps
 * of zeros.
 *
 * Samples of weight 0 cost as much as the others. Where few have a mask and the net has no batch
 * statistics, it is the same, for a net of F flops and a share r with masks, to run the net on
 * both kinds apart and guide one of them; that costs 3F + 3rF in place of 6F:
 *     with = net(s, xa = xg_take(x, masked, k))     without = net(s, xg_take(x, others, n - k))
 *     loss = cross_entropy(xg_concat(with, without, 0)) + guide(map of with and xa, masks) */
XG_API xg_tensor *xg_guide(xg_tensor *map, xg_tensor *mask, const xg_guide_options *o);

/* 9.2 Masks from boxes (Rao 2023, released code). Edges in pixels of a picture of width x
 *     height. Sets mask[y*w+x] = 1 inside: the box is scaled to w x h, clipped to [0,w-1] x
 *     [0,h-1], truncated, grown on every side by int(dilation * extent) and clipped again; upper
 *     edges are outside. Call again for a union. A box that is not finite marks nothing. */
typedef struct xg_box { double x0, y0, x1, y1; } xg_box;
XG_API void xg_mask_box(xg_real *mask, int h, int w, xg_box box, double width, double height,
                        double dilation);

/* ============================================================================================== *
 *  [A10] measure                                                                                 *
 * ============================================================================================== */

/* 10.1 Localisation of one map against one mask of 0 and 1, `count` numbers each (Rao 2023); NaN
 *      where A+ is not finite. */
/* Energy pointing game: sum M A+ / sum A+, in [0,1]; 0 where sum A+ < 1e-7. */
XG_API double xg_epg(const xg_real *map, const xg_real *mask, size_t count);
/* Intersection over union of the mask and {min-max normalised A+ > threshold}; 0 for an empty
 * union. */
XG_API double xg_iou(const xg_real *map, const xg_real *mask, size_t count, double threshold);

/* 10.2 Accuracy, in [0,1]; NaN of no samples. logits are [n,classes]. */
XG_API double xg_accuracy(const xg_real *logits, const int *label, int n, int classes);

/* By group (bird on water, bird on land, ..), counted batch after batch. Start from zero. */
typedef struct xg_groups { int count; int64_t seen[64]; int64_t right[64]; } xg_groups;
XG_API void   xg_groups_add(xg_groups *g, int group, bool right); /* outside [0,64): ignored */
XG_API double xg_groups_accuracy(const xg_groups *g, int group);  /* NaN for an empty group */
XG_API double xg_groups_overall(const xg_groups *g);              /* over all samples */
XG_API double xg_groups_mean(const xg_groups *g);               /* mean of the groups' accuracies */
XG_API double xg_groups_worst(const xg_groups *g);                /* the smallest of them */

/* Micro F1 over all samples and classes; a logit of at least 0 says yes (Rao 2023). */
typedef struct xg_f1 { int64_t tp, fp, fn; } xg_f1;
XG_API void   xg_f1_add(xg_f1 *f, const xg_real *logits, const xg_real *target, size_t count);
XG_API double xg_f1_value(const xg_f1 *f);                      /* 2tp/(2tp+fp+fn); 0 for nothing */

/* ============================================================================================== *
 *  [A11] files                                                                                   *
 * ============================================================================================== */

/* What loading did, by name. Lists are joined with ", " and end with "..." when they were cut. */
typedef struct xg_load_report {
    int  loaded, missing, unexpected, mismatched;   /* missing: in the store, not in the file */
    char missing_names[512], unexpected_names[512], mismatched_names[512];
} xg_load_report;

typedef struct xg_load_options {
    bool        lenient;    /* accept trailing bytes, gaps, unknown types of tensors not wanted */
    bool        create;     /* add what the store does not have, as trainable weights */
    const char *skip;       /* ignore names that start so ("fc.") */
} xg_load_options;

/* 11.1 safetensors. Loading converts F64, F32, F16, BF16, I64, I32, I16, I8, U8 and BOOL. Either
 *      all is loaded or, on an error (IO, FORMAT, UNSUPPORTED, MEMORY; the sentence is in
 *      xg_params_error), nothing is changed. Other shapes than the store's are reported, not
 *      errors. Before, tapes must have released what they computed of the weights. o, report and
 *      error may be NULL. Saving writes "path.tmp" beside the target and renames it. */
#ifndef XG_NO_STDIO
XG_API xg_code xg_params_load(xg_params *params, const char *path, const xg_load_options *o,
                              xg_load_report *report);
XG_API xg_code xg_params_save(const xg_params *params, const char *path, xg_error *error);
#endif
/* The same from and to memory. */
XG_API xg_code xg_params_parse(xg_params *params, const void *bytes, size_t count,
                               const xg_load_options *o, xg_load_report *report);

/* 11.2 A checkpoint is everything needed to go on bit by bit: weights, buffers, optimiser state,
 *      step counts, and notes of yours (text by key: epoch, generator state) in the file's
 *      metadata. Loading adds what the store lacks; NAME: the file lacks something of the store,
 *      SHAPE: it has another shape there, UNSUPPORTED: other numbers than this build's, FORMAT:
 *      weights alone. At most max notes are read, *count of them; both pointers may be NULL. */
typedef struct xg_note { char key[48]; char value[208]; } xg_note;
#ifndef XG_NO_STDIO
XG_API xg_code xg_checkpoint_save(xg_params *params, const char *path, const xg_note *notes,
                                  int count);
XG_API xg_code xg_checkpoint_load(xg_params *params, const char *path, xg_note *notes, int max,
                                  int *count);
#endif

/* 11.3 npy. Reads f2 f4 f8 i1 i2 i4 i8 u1 b1 of either byte order, in C order, up to four axes
 *      (missing trailing ones are 1), as a leaf; writes <f4, or <f8 in the double build. */
XG_API xg_tensor *xg_npy_parse(xg_tape *tape, const void *bytes, size_t count);
#ifndef XG_NO_STDIO
XG_API xg_tensor *xg_npy_load(xg_tape *tape, const char *path);
XG_API xg_code    xg_npy_save(xg_tensor *x, const char *path);
#endif

#ifdef __cplusplus
}
#endif
#endif /* XGUIDE_H */

/* ============================================================================================== *
 * ============================================================================================== *
 *  Half B: the implementation. In exactly one source file:                                       *
 *      #define XG_IMPLEMENTATION                                                                 *
 *      #include "xguide.h"                                                                       *
 * ============================================================================================== *
 * ============================================================================================== */

/* This file includes itself once for every instruction set, and each such pass sees nothing but the
 * kernels, so half B stands in three brackets: before the kernels, the kernels, after them. */
#if defined(XG_IMPLEMENTATION) && !defined(XG__LEVEL) && !defined(XG__BUILT)

#ifdef __FAST_MATH__
#error "xguide.h: compile without -ffast-math (NaN, infinities and the order of sums matter here)"
#endif

/* ============================================================================================== *
 *  [1] platform                                                                                  *
 * ============================================================================================== */

#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

/* 1.1 Compilers. */

/* How public functions are defined; how they are declared is XG_API. */
#ifdef XG_STATIC
#define XG_API_DEF XG_API
#else
#define XG_API_DEF
#endif

/* XG__INLINE: small functions that must melt into their callers, even in a build for debugging.
 * XG__UNUSED: helpers that not every configuration calls; parameters that not every rule reads.
 * XG__PREFETCH: the processor reads ahead along a run of numbers, but not from one to the next. */
#if defined(__GNUC__) || defined(__clang__)
#define XG__INLINE static inline __attribute__((always_inline, unused))
#define XG__UNUSED __attribute__((unused))
#define XG__PREFETCH(pointer, ahead) \
    __builtin_prefetch((const void *)((uintptr_t)(pointer) + (size_t)(ahead) * sizeof(xg_real)))
#else
#define XG__INLINE static inline
#define XG__UNUSED
#define XG__PREFETCH(pointer, ahead) ((void)0)
#endif

/* Before a loop with constant bounds: unroll it whole. At -O2 compilers do not do so unasked, and
 * accumulators in an array then live in memory instead of registers. Not where every access is
 * checked anyway: that compiles for minutes. BY_FOUR is for loops along a row that do little in a
 * round: else counting rounds takes as long as the work. */
#if defined(__SANITIZE_ADDRESS__)
#define XG__UNROLL
#define XG__BY_FOUR
#elif defined(__clang__)
#define XG__UNROLL  _Pragma("clang loop unroll(full)")
#define XG__BY_FOUR _Pragma("clang loop unroll_count(4)")
#elif defined(__GNUC__) && __GNUC__ >= 8
#define XG__UNROLL  _Pragma("GCC unroll 64")
#define XG__BY_FOUR _Pragma("GCC unroll 4")
#else
#define XG__UNROLL
#define XG__BY_FOUR
#endif

/* What must hold unless this file is wrong. Define it as assert to have it checked. */
#ifndef XG_ASSERT
#define XG_ASSERT(condition) ((void)0)
#endif

/* What a struct of zeros starts as: `T x = XG__ZEROS;`. Not for unions: only their first member. */
#ifdef __cplusplus
#define XG__ZEROS {}
#else
#define XG__ZEROS { 0 }
#endif

#define XG__JOIN_(a, b) a##b
#define XG__JOIN(a, b)  XG__JOIN_(a, b)

/* 1.2 Small things. */

XG_API_DEF const char *xg_version(void) { return XG_VERSION; }

/* a * b, or SIZE_MAX (which no allocator can give) when it does not fit. */
XG__INLINE size_t xg__times(size_t a, size_t b)
{
    return b != 0 && a > SIZE_MAX / b ? SIZE_MAX : a * b;
}

XG__INLINE size_t xg__min(size_t a, size_t b) { return a < b ? a : b; }
XG__INLINE size_t xg__max(size_t a, size_t b) { return a > b ? a : b; }

XG_API_DEF xg_shape xg_shape4(int n, int c, int h, int w)
{
    const xg_shape s = { n, c, h, w };
    return s;
}

/* No elements when an extent is below 1; SIZE_MAX when there are more than memory could hold. */
XG_API_DEF size_t xg_shape_size(xg_shape s)
{
    if (s.n < 1 || s.c < 1 || s.h < 1 || s.w < 1) return 0;
    return xg__times(xg__times((size_t)s.n, (size_t)s.c), xg__times((size_t)s.h, (size_t)s.w));
}

XG_API_DEF bool xg_shape_same(xg_shape a, xg_shape b)
{
    return a.n == b.n && a.c == b.c && a.h == b.h && a.w == b.w;
}

static const struct { const char *name, *meaning; } xg__codes[XG_ERR_COUNT] = {
#define X(name, meaning) { #name, meaning },
    XG_ERRORS(X)
#undef X
};

XG_API_DEF const char *xg_code_name(xg_code code)
{
    return (unsigned)code < XG_ERR_COUNT ? xg__codes[code].name : "?";
}

XG_API_DEF const char *xg_code_meaning(xg_code code)
{
    return (unsigned)code < XG_ERR_COUNT ? xg__codes[code].meaning : "no such code";
}

/* 1.3 Random numbers (Steele, Lea, Flood 2014: splitmix). The state counts in steps of an odd
 *     constant, so its period is 2^64, and a bijective scrambler turns the count into bits. A seed
 *     shall mean the same numbers everywhere, so no product is fused with a sum here, whatever the
 *     machine offers. */
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC push_options
#pragma GCC optimize("fp-contract=off")
#endif

XG_API_DEF xg_rng xg_rng_seed(uint64_t seed)
{
    const xg_rng rng = { seed };
    return rng;
}

XG_API_DEF uint64_t xg_rng_next(xg_rng *rng)
{
    uint64_t z = (rng->state += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

XG_API_DEF double xg_rng_uniform(xg_rng *rng)
{
    return (double)(xg_rng_next(rng) >> 11) * (1.0 / 9007199254740992.0);   /* 53 bits of 2^53 */
}

/* c[0] + c[1] z + c[2] z^2 + ... */
static double xg__series(const double *c, int count, double z)
{
    double y = c[count - 1];
    for (int i = count - 2; i >= 0; i--) y = y * z + c[i];
    return y;
}

/* ln x for normal x > 0, and cos(2 pi x) for x in [0,1), both to 7e-16. Those of <math.h> differ
 * in the last bit from system to system. */
static double xg__ln(double x)
{
    static const double c[] = { 2.0, 2.0 / 3, 2.0 / 5, 2.0 / 7, 2.0 / 9, 2.0 / 11, 2.0 / 13,
        2.0 / 15, 2.0 / 17, 2.0 / 19, 2.0 / 21 };
    int e;
    double m = frexp(x, &e), s;
    if (m < 0.70710678118654752) {
        m *= 2;
        e--;
    }
    s = (m - 1) / (m + 1);                               /* ln m = 2 artanh s */
    return e * 0.69314718055994531 + s * xg__series(c, 11, s * s);
}

static double xg__cos_turns(double x)
{
    static const double c[] = { 1.0, -1.2337005501361697, 0.25366950790104803,
        -0.020863480763352961, 9.1926027483942659e-4, -2.5202042373060607e-5,
        4.7108747788181717e-7, -6.3866030837918521e-9, 6.5659631149794728e-11 };
    static const double s[] = { 1.5707963267948966, -0.64596409750624628, 0.079692626246167048,
        -0.0046817541353186883, 1.6044118478735983e-4, -3.5988432352120852e-6,
        5.6921729219679267e-8, -6.6880351098114677e-10, 6.0669357311061955e-12 };
    const int quarter = (int)(4 * x + 0.5);              /* 0..4 */
    const double r = 4 * x - quarter;                    /* [-1/2,1/2] quarters from there */
    const double y = (quarter & 1) != 0 ? r * xg__series(s, 9, r * r) : xg__series(c, 9, r * r);
    return quarter == 1 || quarter == 2 ? -y : y;
}

/* Box and Muller, the cosine branch only: the sine would have to be kept until the next call, and
 * the state would no longer be the whole state. */
XG_API_DEF double xg_rng_normal(xg_rng *rng)
{
    const double radius = sqrt(-2.0 * xg__ln(1.0 - xg_rng_uniform(rng)));   /* ln of (0,1] */
    return radius * xg__cos_turns(xg_rng_uniform(rng));
}

/* The high half of a 32-bit draw times n is uniform but for the draws whose low half falls into the
 * first 2^32 mod n values: those are drawn again. */
XG_API_DEF int xg_rng_below(xg_rng *rng, int n)
{
    if (n < 1) return 0;
    const uint32_t count = (uint32_t)n;
    uint32_t low;
    uint64_t product;
    do {
        product = (xg_rng_next(rng) >> 32) * count;
        low = (uint32_t)(product & 0xffffffffu);
    } while (low < count && low < (0u - count) % count);
    return (int)(product >> 32);
}

XG_API_DEF void xg_rng_shuffle(xg_rng *rng, int *items, int count)
{
    for (int i = count - 1; i > 0; i--) {
        const int j = xg_rng_below(rng, i + 1), keep = items[i];
        items[i] = items[j];
        items[j] = keep;
    }
}

#if defined(__clang__)
#pragma STDC FP_CONTRACT DEFAULT
#elif defined(__GNUC__)
#pragma GCC pop_options
#endif

/* ============================================================================================== *
 *  [2] memory                                                                                    *
 * ============================================================================================== */

/* 2.1 An arena hands out pieces of chunks, one after the other, and takes them back all at once
 *     down to a mark. A list holds the chunks; those up to `current` are in use, those behind it
 *     are free:
 *
 *         first -> [ full ] -> [ full ] -> [ current: used | free ] -> [ free ] -> [ free ]
 *
 *     A release only moves `current` back. The chunks stay, in order, so the next training step
 *     walks through the very same ones and asks the allocator for nothing.
 *
 *     Between a mark and its release a piece whose last reader has run can be given back alone
 *     (2.3): it joins a list of spare pieces, and the next to ask takes one of those first. */

#define XG__ALIGN (16 * sizeof(xg_real))    /* the widest vector; 64 bytes in float, a cache line */
#define XG__CHUNK_FIRST ((size_t)1 << 18)   /* chunks grow from 256 KiB ...                       */
#define XG__CHUNK_LARGE ((size_t)1 << 26)   /* ... to 64 MiB, where the system gives huge pages   */

/* Stands on an aligned address in front of its pieces and fills one XG__ALIGN. */
typedef struct xg__chunk {
    struct xg__chunk *next;
    void  *memory;            /* as the allocator gave it                                         */
    size_t bytes;             /* of pieces                                                        */
} xg__chunk;

/* A piece that was given back. It lies in its own first bytes. */
typedef struct xg__spare {
    struct xg__spare *next;   /* the next higher address                                          */
    size_t bytes;
} xg__spare;

typedef struct xg__arena {
    void *(*alloc)(void *user, size_t bytes);
    void  (*release)(void *user, void *memory);
    void   *user;
    bool    fixed;            /* the only chunk is the caller's buffer                            */
    xg__chunk *first;
    xg__chunk *current;       /* NULL: nothing is in use                                          */
    size_t used;              /* bytes of the current chunk                                       */
    xg__spare *spare;         /* pieces given back, by address                                    */
    unsigned marks;           /* set, a release keeps its own: pieces older than the last stay   */
    size_t bytes;             /* handed out                                                       */
    size_t peak;              /* the most ever handed out at once                                 */
    size_t reserved;          /* taken from the allocator                                         */
} xg__arena;

static void *xg__default_alloc(void *user, size_t bytes)
{
    (void)user;
    return malloc(bytes);
}

static void xg__default_release(void *user, void *memory)
{
    (void)user;
    free(memory);
}

/* For an allocator that comes without a way to give back. */
static void xg__keep(void *user, void *memory)
{
    (void)user;
    (void)memory;
}

XG__INLINE size_t xg__round_up(size_t bytes) { return (bytes + XG__ALIGN - 1) & ~(XG__ALIGN - 1); }

XG__INLINE char *xg__chunk_pieces(xg__chunk *chunk) { return (char *)chunk + XG__ALIGN; }

/* Makes a chunk of a piece of memory, NULL when not even its head fits. */
static xg__chunk *xg__chunk_in(void *memory, size_t bytes)
{
    const size_t low_bits = XG__ALIGN - 1;
    const size_t skip = (XG__ALIGN - ((uintptr_t)memory & low_bits)) & low_bits;
    if (memory == NULL || bytes < skip + 2 * XG__ALIGN) return NULL;
    xg__chunk *chunk = (xg__chunk *)(void *)((char *)memory + skip);
    chunk->next = NULL;
    chunk->memory = memory;
    chunk->bytes = (bytes - skip - XG__ALIGN) & ~low_bits;
    return chunk;
}

/* An arena without memory yet. */
static xg__arena xg__arena_open(const xg_config *config)
{
    xg__arena a = XG__ZEROS;
    a.alloc = xg__default_alloc;
    a.release = xg__default_release;
    if (config->fixed != NULL) {
        a.fixed = true;
        a.reserved = config->fixed_bytes;
        a.first = xg__chunk_in(config->fixed, config->fixed_bytes);
    } else if (config->alloc != NULL) {
        a.alloc = config->alloc;
        a.release = config->release != NULL ? config->release : xg__keep;
        a.user = config->memory_user;
    }
    return a;
}

/* Gives every chunk back. It is a copy that does so: the arena may lie in one of them. */
static void xg__arena_close(xg__arena a)
{
    xg__chunk *chunk = a.fixed ? NULL : a.first;
    while (chunk != NULL) {
        xg__chunk *next = chunk->next;
        a.release(a.user, chunk->memory);
        chunk = next;
    }
}

/* The link that leads to the free chunks. */
XG__INLINE xg__chunk **xg__arena_free(xg__arena *a)
{
    return a->current != NULL ? &a->current->next : &a->first;
}

/* A free chunk with room for `bytes`, out of the list; NULL when there is none. First fit: a step
 * that repeats finds its chunks in the order in which it left them. */
static xg__chunk *xg__arena_reuse(xg__arena *a, size_t bytes)
{
    xg__chunk **link = xg__arena_free(a), *found;
    while (*link != NULL && (*link)->bytes < bytes) link = &(*link)->next;
    found = *link;
    if (found != NULL) *link = found->next;
    return found;
}

/* A new chunk with room for `bytes`. Each is as large as all before it, within limits. */
static xg__chunk *xg__arena_grow(xg__arena *a, size_t bytes)
{
    if (a->fixed) return NULL;
    size_t ask = xg__min(xg__max(a->reserved, XG__CHUNK_FIRST), XG__CHUNK_LARGE);
    ask = xg__max(ask, bytes + 2 * XG__ALIGN);   /* its head, and what alignment may skip */
    xg__chunk *chunk = xg__chunk_in(a->alloc(a->user, ask), ask);
    if (chunk != NULL) a->reserved += ask;
    return chunk;
}

static void xg__spare_add(xg__arena *a, void *piece, size_t bytes);

/* Makes a chunk with room for `bytes` the current one. What is left of the last one is spare. */
static bool xg__arena_advance(xg__arena *a, size_t bytes)
{
    xg__chunk *chunk = xg__arena_reuse(a, bytes);
    xg__chunk **link = xg__arena_free(a);
    if (chunk == NULL) chunk = xg__arena_grow(a, bytes);
    if (chunk == NULL) return false;
    if (a->current != NULL && a->current->bytes > a->used) {
        xg__spare_add(a, xg__chunk_pieces(a->current) + a->used, a->current->bytes - a->used);
        a->used = a->current->bytes;
    }
    chunk->next = *link;
    *link = chunk;
    a->current = chunk;
    a->used = 0;
    return true;
}

/* `bytes` of memory on a boundary of XG__ALIGN and padded to a multiple of it, with anything in
 * them. NULL: no memory, and the arena is as it was. */
static void *xg__arena_take(xg__arena *a, size_t bytes)
{
    if (bytes > SIZE_MAX / 2) return NULL;
    bytes = xg__max(xg__round_up(bytes), XG__ALIGN);
    if (a->current == NULL || a->current->bytes - a->used < bytes) {
        if (!xg__arena_advance(a, bytes)) return NULL;
    }
    char *piece = xg__chunk_pieces(a->current) + a->used;
    a->used += bytes;
    a->bytes += bytes;
    a->peak = xg__max(a->peak, a->bytes);
    return piece;
}

/* 2.2 Marks. Releasing to a place ends every piece taken after it; places nest like brackets. */

/* Where an arena stands. What shall be undone begins with a mark: without one, pieces that become
 * spare meanwhile would join the list that a release brings back. */
static xg__place xg__arena_place(const xg__arena *a)
{
    const xg__place place = { a->current, a->spare, a->used, a->bytes, a->marks };
    return place;
}

/* Pieces that are spare now wait for the release: whatever is given back and taken until then lies
 * behind the mark. */
static xg__place xg__arena_mark(xg__arena *a)
{
    const xg__place place = xg__arena_place(a);
    a->spare = NULL;
    a->marks++;
    return place;
}

/* To where things stood right after the mark (it may be released to again), or before it. */
static void xg__arena_rewind(xg__arena *a, xg__place place, bool keep_mark)
{
    a->current = (xg__chunk *)place.chunk;
    a->used = place.used;
    a->bytes = place.bytes;
    a->spare = keep_mark ? NULL : (xg__spare *)place.spare;
    a->marks = place.marks + keep_mark;
}

static void xg__arena_release(xg__arena *a, xg__place place)
{
    xg__arena_rewind(a, place, false);
}

/* 2.3 Spare pieces: a list by address. Neighbours are joined; those of different chunks never
 *     touch, since a chunk's head lies between. */

/* The link behind which a piece at that address belongs. */
static xg__spare **xg__spare_link(xg__arena *a, const void *piece)
{
    xg__spare **link = &a->spare;
    while (*link != NULL && (uintptr_t)*link < (uintptr_t)piece) link = &(*link)->next;
    return link;
}

XG__INLINE bool xg__spare_touches(const xg__spare *low, const xg__spare *high)
{
    return high != NULL && (uintptr_t)low + low->bytes == (uintptr_t)high;
}

static void xg__spare_add(xg__arena *a, void *piece, size_t bytes)
{
    xg__spare **link = xg__spare_link(a, piece), *added = (xg__spare *)piece;
    added->bytes = bytes;
    added->next = *link;
    *link = added;
    if (xg__spare_touches(added, added->next)) {
        added->bytes += added->next->bytes;
        added->next = added->next->next;
    }
    if (link == &a->spare) return;
    xg__spare *low = (xg__spare *)(void *)((char *)link - offsetof(xg__spare, next));
    if (xg__spare_touches(low, added)) {
        low->bytes += added->bytes;
        low->next = added->next;
    }
}

/* Gives a piece of so many bytes back. Only pieces taken after the last mark may be. */
static void xg__arena_give(xg__arena *a, void *piece, size_t bytes)
{
    bytes = xg__max(xg__round_up(bytes), XG__ALIGN);
    a->bytes -= bytes;
    xg__spare_add(a, piece, bytes);
}

/* Like xg__arena_take, from the spare pieces if one is large enough: the smallest that is. */
static void *xg__arena_take_any(xg__arena *a, size_t bytes)
{
    xg__spare **best = NULL;
    if (bytes > SIZE_MAX / 2) return NULL;
    bytes = xg__max(xg__round_up(bytes), XG__ALIGN);
    for (xg__spare **link = &a->spare; *link != NULL; link = &(*link)->next) {
        if ((*link)->bytes >= bytes && (best == NULL || (*link)->bytes < (*best)->bytes)) {
            best = link;
        }
    }
    if (best == NULL) return xg__arena_take(a, bytes);
    xg__spare *piece = *best;
    if (piece->bytes > bytes) {
        xg__spare *rest = (xg__spare *)(void *)((char *)piece + bytes);
        rest->bytes = piece->bytes - bytes;
        rest->next = piece->next;
        *best = rest;
    } else {
        *best = piece->next;
    }
    a->bytes += bytes;
    a->peak = xg__max(a->peak, a->bytes);
    return piece;
}

/* ============================================================================================== *
 *  [3] kernels                                                                                   *
 * ============================================================================================== */

/* 3.0 What a kernel is told. A job is plain data; a range [begin,end) of its units may run on any
 *     thread, and the bits of the result do not depend on how the units were cut. */

/* Workers, and memory for them. Kernels with several phases call `parallel` once a phase. */
typedef struct xg__team {
    int    workers;
    void (*parallel)(void *user, int tasks, void (*run)(void *context, int task, int worker),
                     void *context);
    void  *user;
    xg_real *scratch;          /* as many bytes as the job's ..._scratch function asked for */
} xg__team;

/* Pointwise along a row of n numbers, y possibly in the place of an operand. p and q are the
 * operation's numbers. The step of an operand of a pair is 1, or 0: the same number again. */
typedef void (*xg__map_row)(const xg_real *x, xg_real *y, size_t n, xg_real p, xg_real q);
typedef void (*xg__zip_row)(const xg_real *a, size_t step_a, const xg_real *b, size_t step_b,
                            xg_real *y, size_t n);

/* The columns of a product as kernels pack them, kept for others; made: the numbers are there. */
typedef struct xg__packed { xg_real *data; bool made; } xg__packed;

/* C[m,n] = op(A) op(B), `batch` of them, step_* apart (0: the same matrix again). Row-major, dense:
 * A is m x k (k x m when ta), B is k x n (n x k when tb). */
typedef struct xg__gemm_job {
    int m, n, k, batch;
    bool ta, tb;
    bool add;                  /* to what C holds */
    const xg_real *a, *b;
    xg_real *c;
    size_t step_a, step_b, step_c;
    xg__packed *packed;        /* not NULL: its packed columns are kept there */
} xg__gemm_job;

/* What is done to a convolution's sums before they leave the cache: scale * sum + shift + more, and
 * ReLU; each step is rounded. What is NULL is left out. Without more, a max-pool of 2x2 may follow,
 * if oh and ow are even: then only that is stored. */
typedef struct xg__finish {
    bool any, relu;
    const xg_real *scale, *shift;                  /* a number for each channel */
    const xg_real *more;                           /* they lie as the result does */
    xg_real *places, *maxima;                      /* of the max-pool; one of both may be NULL */
} xg__finish;

/* Does a max-pool follow? */
XG__INLINE bool xg__finish_pools(const xg__finish *f)
{
    return f->places != NULL || f->maxima != NULL;
}

/* One of the convolution trio; x [n,c,h,w], w [o,c/groups,kh,kw], g [n,o,oh,ow]. `y` is the one
 * that is computed: g for forward, x for input gradient, w for weight gradient; its own pointer
 * is unused. */
typedef enum xg__conv_kind { XG__CONV, XG__CONV_DX, XG__CONV_DW } xg__conv_kind;
typedef struct xg__conv_job {
    xg__conv_kind kind;
    int n, c, h, w, o, kh, kw, oh, ow, stride, pad, dilation, groups;
    bool winograd;             /* by Winograd's algorithm (3.6), see 3.0.3 */
    bool add;                  /* to what y holds: weight gradients only */
    const xg_real *px, *pw, *pg;
    const xg_real *at;         /* not NULL: pg is the gradient of a max-pool of 2x2 of what g is the
                                  gradient of, [n,o,oh/2,ow/2], and these are its places: of weight
                                  gradients (3.5.10), and input gradients by Winograd's algorithm */
    xg_real *y;
    xg__finish finish;         /* of a forward one */
} xg__conv_job;

/* Of so few planes in, Winograd's products are not kept (3.6.4). */
XG__INLINE bool xg__winograd_brief(size_t planes) { return planes == 3 || planes == 4; }

/* Windows over a plane: of h x w numbers one for each of oh x ow windows. Windows in columns
 * [inner, outer) are not clipped at the sides. */
typedef struct xg__pool_job {
    xg_window window;
    int h, w, oh, ow, inner, outer;
    double share;                                  /* 1 / (kh kw) */
} xg__pool_job;

/* The numbers of an optimiser's step (7.4). */
typedef struct xg__rates {
    xg_real lr, scale, decay, momentum;            /* scale: of the gradient, from clipping */
    xg_real beta1, beta2, fresh1, fresh2;          /* fresh: 1 - beta */
    xg_real rate, root, eps, keep;                 /* Adam: lr and 1/sqrt corrected for bias */
    bool    nesterov;                              /* keep: what decoupled decay leaves of w */
} xg__rates;

/* Changes n weights w by their gradients g; first and second are the optimiser's state. */
typedef void (*xg__update_row)(const xg__rates *rates, xg_real *w, const xg_real *g, xg_real *first,
                               xg_real *second, size_t n);

/* The pointwise operations that have a vector kernel: X(name, expression in v, p, q) and, for
 * pairs, X(name, expression in a, b). */
#define XG__MAPS(X) X(exp) X(log) X(sqrt) X(pow) X(sigmoid) X(tanh) X(softplus) X(abs) X(affine) \
    X(relu) X(clamp) X(sign) X(step) X(within)
#define XG__ZIPS(X) X(add) X(sub) X(mul) X(div) X(max) X(min) X(less) X(gate)

enum {
#define X(name) XG__MAP_##name,
    XG__MAPS(X)
#undef X
    XG__MAP_COUNT
};
enum {
#define X(name) XG__ZIP_##name,
    XG__ZIPS(X)
#undef X
    XG__ZIP_COUNT
};

/* The part of a window that lies inside the input: numbers first, first + dilation, .. < end. */
XG__INLINE void xg__clip(int place, int kernel, int extent, xg_window k, int *first, int *end)
{
    int start = place * k.stride - k.pad;
    int stop = start + k.dilation * (kernel - 1) + 1;
    int missing = start < 0 ? (-start + k.dilation - 1) / k.dilation : 0;
    *first = start + missing * k.dilation;
    *end = stop < extent ? stop : extent;
}

/* One instruction set's kernels. */
typedef struct xg__kernels {
    const char *name;                                           /* "avx512" */
    xg__map_row map[XG__MAP_COUNT];
    xg__zip_row zip[XG__ZIP_COUNT];
    void   (*sum_lanes)(double *lane, const xg_real *x, size_t n);  /* lane[i % 16] += x[i] */
    void   (*sum_each)(double *sum, const xg_real *x, size_t n);    /* sum[i] += x[i] */
    void   (*square_lanes)(double *lane, const xg_real *x, size_t n);  /* lane[i % 16] += x[i]^2 */
    double (*check)(const xg_real *x, size_t n);        /* 0 if all are finite, else NaN */
    xg__update_row update[3];                                       /* by vectors of state */
    /* Of one plane: the mean of each window; the index of its maximum, and unless y is NULL the
     * maximum. Then of windows of 2x2 side by side: the numbers at an index, and the plane that
     * has them there. */
    void   (*avgpool)(const xg__pool_job *job, const xg_real *x, xg_real *y);
    void   (*argpool)(const xg__pool_job *job, const xg_real *x, xg_real *index, xg_real *y);
    void   (*pick_pairs)(const xg__pool_job *job, const xg_real *x, const xg_real *index,
                         xg_real *y);
    void   (*place_pairs)(const xg__pool_job *job, const xg_real *g, const xg_real *index,
                          xg_real *x);
    size_t (*gemm_scratch)(const xg__gemm_job *job, int workers);   /* bytes */
    /* How many numbers its packed columns are, if keeping them can pay, or 0; of which operand. */
    size_t (*gemm_packed)(const xg__gemm_job *job, bool *of_a);
    void   (*gemm)(const xg__gemm_job *job, const xg__team *team);
    size_t (*conv_scratch)(const xg__conv_job *job, int workers);   /* bytes */
    void   (*conv)(const xg__conv_job *job, const xg__team *team);
} xg__kernels;

/* 3.0.1 One pass for each instruction set.
 *
 * The text from here to the end of section 3 is written once and compiled several times: this file
 * includes itself with XG__LEVEL set to the name of a level, and such a pass sees only that text,
 * with the compiler told that it may use that level's instructions. In it, XG_(name) is
 * xg__LEVEL_name. So a user who compiles with plain -O2 has all levels in one binary, and the
 * machine chooses when it runs. */

/* Who can do that: gcc and clang. Any other compiler gets the scalar level. */
#define XG__LEVEL_SCALAR 1
#define XG__LEVEL_NEON   2
#define XG__LEVEL_WASM   3
#define XG__LEVEL_AVX2   4
#define XG__LEVEL_AVX512 5

#if defined(XG_DOUBLE) || defined(XG_NO_SIMD)
    /* Scalar only. */
#elif defined(_MSC_VER) || defined(__INTEL_COMPILER) || defined(__TINYC__)
    /* They claim to be one of the two, or accept half of what is needed. */
#elif !defined(__clang__) && (!defined(__GNUC__) || __GNUC__ < 8)
    /* Unknown or too old. */
#elif defined(__x86_64__)
#ifndef XG_NO_AVX2
#define XG__HAS_AVX2
#endif
#ifndef XG_NO_AVX512
#define XG__HAS_AVX512
#endif
#elif defined(__aarch64__) && defined(__ARM_NEON) && !defined(__AARCH64EB__)
#ifndef XG_NO_NEON
#define XG__HAS_NEON
#endif
#elif defined(__wasm_simd128__)
#ifndef XG_NO_WASM
#define XG__HAS_WASM
#endif
#endif

/* Their headers cannot be included inside a pass. */
#if defined(XG__HAS_AVX2) || defined(XG__HAS_AVX512)
#include <immintrin.h>
#endif
#ifdef XG__HAS_NEON
#include <arm_neon.h>
#endif
#ifdef XG__HAS_WASM
#include <wasm_simd128.h>
#endif

/* What this file is called, for those who renamed it. */
#ifndef XG_HEADER
#define XG_HEADER "xguide.h"
#endif

/* No level may fuse a product and a sum on its own, or its bits would differ from the others'.
 * clang is told so, and told at the end of the passes to go back to what the command line says. gcc
 * is given no chance: in this section a product never feeds a sum, except through fma. One that
 * must be rounded first is fma(a, b, -0). */
#ifdef __clang__
#pragma STDC FP_CONTRACT OFF
#endif

#define XG__LEVEL scalar
#define XG__PASS XG__LEVEL_SCALAR
#include XG_HEADER
#undef XG__LEVEL

#ifdef XG__HAS_NEON
#define XG__LEVEL neon
#define XG__PASS XG__LEVEL_NEON
#include XG_HEADER
#undef XG__LEVEL
#endif

#ifdef XG__HAS_WASM
#define XG__LEVEL wasm
#define XG__PASS XG__LEVEL_WASM
#include XG_HEADER
#undef XG__LEVEL
#endif

#ifdef XG__HAS_AVX2
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define XG__LEVEL avx2
#define XG__PASS XG__LEVEL_AVX2
#include XG_HEADER
#undef XG__LEVEL
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

#ifdef XG__HAS_AVX512
#ifdef __clang__
#pragma clang attribute push( \
    __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")
#pragma GCC diagnostic push      /* some versions find faults in their own <immintrin.h> */
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#define XG__LEVEL avx512
#define XG__PASS XG__LEVEL_AVX512
#include XG_HEADER
#undef XG__LEVEL
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC diagnostic pop
#pragma GCC pop_options
#endif
#endif

#ifdef __clang__
#pragma STDC FP_CONTRACT DEFAULT
#endif

/* 3.0.2 Which level runs. */

#if defined(XG__HAS_AVX2) || defined(XG__HAS_AVX512)
/* Whether the processor has a level's instructions and the operating system saves their registers.
 * The compiler's runtime asks both (CPUID and XCR0) once when the program starts; to ask again
 * here would cost half a millisecond on a virtual machine, which stops at every CPUID. */
static bool xg__x86_runs(bool avx512)
{
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return false;
    if (!avx512) return true;
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
        && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

/* The i-th level that this machine runs, "scalar" first and the best last; NULL past the end. */
static const xg__kernels *xg__kernels_at(int i)
{
    const xg__kernels *found[5];
    int count = 0;
    found[count++] = &xg__scalar_kernels;
#ifdef XG__HAS_NEON
    found[count++] = &xg__neon_kernels;
#endif
#ifdef XG__HAS_WASM
    found[count++] = &xg__wasm_kernels;
#endif
#ifdef XG__HAS_AVX2
    if (xg__x86_runs(false)) found[count++] = &xg__avx2_kernels;
#endif
#ifdef XG__HAS_AVX512
    if (xg__x86_runs(true)) found[count++] = &xg__avx512_kernels;
#endif
    return i >= 0 && i < count ? found[i] : NULL;
}

XG_API_DEF int xg_simd_count(void)
{
    int count = 0;
    while (xg__kernels_at(count) != NULL) count++;
    return count;
}

XG_API_DEF const char *xg_simd_name(int i)
{
    const xg__kernels *kernels = xg__kernels_at(i);
    return kernels != NULL ? kernels->name : NULL;
}

XG_API_DEF const char *xg_simd_best(void) { return xg_simd_name(xg_simd_count() - 1); }

/* The kernels of a level by name, NULL when it is unknown or does not run here. No name: what the
 * environment variable XG_SIMD says, else the best. */
static const xg__kernels *xg__kernels_find(const char *name)
{
    const xg__kernels *kernels;
    int i;
    if (name == NULL) name = getenv("XG_SIMD");
    if (name == NULL || name[0] == '\0') name = xg_simd_best();
    for (i = 0; (kernels = xg__kernels_at(i)) != NULL; i++) {
        if (strcmp(kernels->name, name) == 0) return kernels;
    }
    return NULL;
}

/* 3.0.3 Which convolutions take Winograd's algorithm (3.6). Shapes alone decide, so that bits do
 *       not depend on the machine. */

static bool xg__winograd_fits(const xg__conv_job *job)
{
    return job->kh == 3 && job->kw == 3 && job->stride == 1 && job->dilation == 1
        && job->groups == 1 && job->pad <= 2;
}

/* Guesses at the work of both ways, counted in products (measured): to transform a patch of a plane
 * costs as much as some hundred, and so does a pair of planes, whose weights are transformed. There
 * must be a margin; and as scratch is up to four times the weights, these must not be huge. Where
 * products are not kept it pays earlier (measured; with few planes out or patches it does not). */
static bool xg__winograd_pays(const xg__conv_job *job)
{
    const bool dx = job->kind == XG__CONV_DX, dw = job->kind == XG__CONV_DW;
    const double down = ((dx ? job->h : job->oh) + 3) / 4;
    const double across = ((dx ? job->w : job->ow) + 3) / 4;
    const double patches = job->n * down * across, pairs = (double)job->c * job->o;
    const double work = (36 * patches + 700) * pairs
                      + (dw ? 700 : 550) * (job->c + job->o) * patches;
    const bool brief = !dx && !dw && xg__winograd_brief((size_t)job->c);
    if (pairs > 1024 * 1024) return false;
    return (brief && job->o >= 8 && patches >= 1024)
        || 9 * pairs * job->n * job->oh * job->ow > 1.25 * work;
}

static bool xg__winograd_chosen(const xg__conv_job *job, xg_winograd wish)
{
    if (wish == XG_WINOGRAD_NEVER || !xg__winograd_fits(job)) return false;
    if (wish == XG_WINOGRAD_ALWAYS) return true;
    return sizeof(xg_real) == sizeof(float) && xg__winograd_pays(job);
}

#endif /* before the kernels */

#ifdef XG__LEVEL

/* From here to 3.7: compiled once for each level (see 3.0.1). Every name goes through XG_. */
#define XG_(name) XG__JOIN(XG__JOIN(xg__, XG__LEVEL), XG__JOIN(_, name))

/* 3.1 The vector type. All levels define the same names, with the same result to the bit:
 *
 *   v, m, w         a vector of XG__LANES numbers, of as many truths, of as many doubles ("wide")
 *   load, store     anywhere in memory; load_part, store_part: the first n < XG__LANES numbers of a
 *                   vector only, the others read as 0 and are not written
 *   set1            the same number everywhere
 *   add sub mul div sqrt    as IEEE 754 has them
 *   fma, fnma       a*b + c and c - a*b, rounded once (wasm: twice)
 *   min, max        a < b ? a : b and a > b ? a : b; so b where one of them is NaN
 *   abs neg copysign        bits only
 *   less less_equal select  select(m, a, b) is a where m holds, else b
 *   bits_add, bits_and      of each number's 32 bits and u
 *   bits_up, bits_down      by 23, the width of a mantissa
 *   bits_number     what the bits, read as a whole number with sign, are worth
 *   transpose       a square of XG__LANES rows into another, whose rows are stored in order: each
 *                   may lie over the end of the one before
 *   load_fours      four numbers of each of XG__LANES places: number j of them all into a[j]
 *   store_fours     and back
 *   evens, odds     every other number of a and b, laid end to end, from the first or the second
 *   mix_low, mix_high       and back: a0 b0 a1 b1 .., its first and its second half
 *   wide_load (from numbers), wide_load_part, wide_read, wide_store (doubles), wide_add
 *   wide_add_square         a + b*b for b from numbers, whose square is exact
 *
 * First what a level says in its own instructions; then, in 3.1.1, what is said once for all. For
 * that, levels with vectors have more: d, as many doubles as fit into a v; wide_half, numbers as
 * doubles; turn_fours, which transposes the 4 x 4 squares that lie side by side in four vectors;
 * join_fours and part_fours, four numbers each of from[0], from[4], .. side by side in a vector,
 * and back.
 */

#if XG__PASS == XG__LEVEL_SCALAR

/* Plain C: the yardstick of all others, and what any machine can run. */

#define XG__LANES 1
typedef xg_real XG_(v);
typedef bool    XG_(m);
typedef double  XG_(w);

XG__INLINE XG_(v) XG_(load)(const xg_real *p)               { return *p; }
XG__INLINE void   XG_(store)(xg_real *p, XG_(v) a)          { *p = a; }
XG__INLINE XG_(v) XG_(load_part)(const xg_real *p, size_t n)       { return n ? *p : 0; }
XG__INLINE void   XG_(store_part)(xg_real *p, XG_(v) a, size_t n)  { if (n) *p = a; }
XG__INLINE XG_(v) XG_(set1)(xg_real x)                      { return x; }
XG__INLINE XG_(v) XG_(min)(XG_(v) a, XG_(v) b)              { return a < b ? a : b; }
XG__INLINE XG_(v) XG_(max)(XG_(v) a, XG_(v) b)              { return a > b ? a : b; }
XG__INLINE XG_(m) XG_(less)(XG_(v) a, XG_(v) b)             { return a < b; }
XG__INLINE XG_(m) XG_(less_equal)(XG_(v) a, XG_(v) b)       { return a <= b; }
XG__INLINE XG_(v) XG_(select)(XG_(m) m, XG_(v) a, XG_(v) b) { return m ? a : b; }

XG__INLINE XG_(w) XG_(wide_read)(const double *p)           { return *p; }
XG__INLINE XG_(w) XG_(wide_load)(const xg_real *p)          { return (double)*p; }
XG__INLINE XG_(w) XG_(wide_load_part)(const xg_real *p, size_t n) { return n ? (double)*p : 0; }
XG__INLINE XG_(w) XG_(wide_add)(XG_(w) a, XG_(w) b)         { return a + b; }
XG__INLINE void   XG_(wide_store)(double *p, XG_(w) a)      { *p = a; }
XG__INLINE XG_(w) XG_(wide_add_square)(XG_(w) a, XG_(w) b)  { return a + b * b; }

XG__INLINE XG_(v) XG_(evens)(XG_(v) a, XG_(v) b)            { (void)b; return a; }
XG__INLINE XG_(v) XG_(odds)(XG_(v) a, XG_(v) b)             { (void)a; return b; }
XG__INLINE XG_(v) XG_(mix_low)(XG_(v) a, XG_(v) b)          { (void)b; return a; }
XG__INLINE XG_(v) XG_(mix_high)(XG_(v) a, XG_(v) b)         { (void)a; return b; }

XG__INLINE void XG_(transpose)(const xg_real *from, size_t from_stride, xg_real *to,
                               size_t to_stride)
{
    (void)from_stride;
    (void)to_stride;
    *to = *from;
}

XG__INLINE void XG_(load_fours)(const xg_real *const *from, size_t offset, XG_(v) *a)
{
    memcpy(a, from[0] + offset, 4 * sizeof *a);
}

XG__INLINE void XG_(store_fours)(const XG_(v) *a, xg_real *const *to, size_t offset)
{
    memcpy(to[0] + offset, a, 4 * sizeof *a);
}

#ifdef XG_DOUBLE

XG__INLINE XG_(v) XG_(fma)(XG_(v) a, XG_(v) b, XG_(v) c)    { return a * b + c; }
XG__INLINE XG_(v) XG_(sqrt)(XG_(v) a)                       { return sqrt(a); }
XG__INLINE XG_(v) XG_(abs)(XG_(v) a)                        { return fabs(a); }
XG__INLINE XG_(v) XG_(copysign)(XG_(v) a, XG_(v) b)         { return copysign(a, b); }

#else

typedef uint32_t XG_(u);

XG__INLINE XG_(v) XG_(sqrt)(XG_(v) a)                       { return sqrtf(a); }
XG__INLINE XG_(v) XG_(abs)(XG_(v) a)                        { return fabsf(a); }
XG__INLINE XG_(v) XG_(copysign)(XG_(v) a, XG_(v) b)         { return copysignf(a, b); }

XG__INLINE XG_(u) XG_(bits)(XG_(v) a) { XG_(u) u; memcpy(&u, &a, 4); return u; }
XG__INLINE XG_(v) XG_(of_bits)(XG_(u) u) { XG_(v) a; memcpy(&a, &u, 4); return a; }
XG__INLINE XG_(v) XG_(bits_number)(XG_(v) a) { return (XG_(v))(int32_t)XG_(bits)(a); }

/* A double holds the product of two floats exactly. Its sum with c is rounded here to 53 bits and
 * then to 24, which is wrong only if the first rounding lands half-way between two floats. So it
 * is rounded to odd instead: when inexact and even, one unit towards the true value. */
static XG__UNUSED XG_(v) XG_(fma_careful)(double product, double c)
{
    const double sum = product + c, part = sum - product;
    const double error = (product - (sum - part)) + (c - part);
    uint64_t u;
    double odd;
    memcpy(&u, &sum, 8);
    if (error != 0 && (u & 1) == 0 && sum - sum == 0) {
        if (sum == 0) return (XG_(v))error;
        u = (error > 0) == (sum > 0) ? u + 1 : u - 1;
    }
    memcpy(&odd, &u, 8);
    return (XG_(v))odd;
}

XG__INLINE XG_(v) XG_(fma)(XG_(v) a, XG_(v) b, XG_(v) c)
{
#if defined(__wasm__)
    return a * b + c;                         /* as the wasm level has it */
#elif defined(__FP_FAST_FMAF) || defined(__FMA__) || defined(__aarch64__)
    return fmaf(a, b, c);                     /* one instruction */
#else
    const double product = (double)a * (double)b, sum = product + (double)c;
    uint64_t u;
    memcpy(&u, &sum, 8);
    if ((u & 0x1fffffff) != 0x10000000 && fabs(sum) > 1e-37) return (XG_(v))sum;
    return XG_(fma_careful)(product, (double)c);
#endif
}

#endif

XG__INLINE XG_(v) XG_(fnma)(XG_(v) a, XG_(v) b, XG_(v) c)   { return XG_(fma)(-a, b, c); }

#elif XG__PASS == XG__LEVEL_NEON

/* 64-bit ARM: 32 registers of 4. Its own minimum and maximum treat NaN and -0 otherwise than 3.1
 * asks. */

#define XG__LANES 4
typedef float32x4_t XG_(v);
typedef uint32x4_t  XG_(m);
typedef float64x2_t XG_(d);

XG__INLINE XG_(v) XG_(load)(const float *p)                 { return vld1q_f32(p); }
XG__INLINE void   XG_(store)(float *p, XG_(v) a)            { vst1q_f32(p, a); }
XG__INLINE XG_(v) XG_(set1)(float x)                        { return vdupq_n_f32(x); }
XG__INLINE XG_(v) XG_(sqrt)(XG_(v) a)                       { return vsqrtq_f32(a); }
XG__INLINE XG_(v) XG_(fma)(XG_(v) a, XG_(v) b, XG_(v) c)    { return vfmaq_f32(c, a, b); }
XG__INLINE XG_(v) XG_(fnma)(XG_(v) a, XG_(v) b, XG_(v) c)   { return vfmsq_f32(c, a, b); }
XG__INLINE XG_(v) XG_(abs)(XG_(v) a)                        { return vabsq_f32(a); }
XG__INLINE XG_(m) XG_(less)(XG_(v) a, XG_(v) b)             { return vcltq_f32(a, b); }
XG__INLINE XG_(m) XG_(less_equal)(XG_(v) a, XG_(v) b)       { return vcleq_f32(a, b); }
XG__INLINE XG_(v) XG_(select)(XG_(m) m, XG_(v) a, XG_(v) b) { return vbslq_f32(m, a, b); }
XG__INLINE XG_(v) XG_(min)(XG_(v) a, XG_(v) b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
XG__INLINE XG_(v) XG_(max)(XG_(v) a, XG_(v) b) { return vbslq_f32(vcltq_f32(b, a), a, b); }
XG__INLINE XG_(v) XG_(evens)(XG_(v) a, XG_(v) b)            { return vuzp1q_f32(a, b); }
XG__INLINE XG_(v) XG_(odds)(XG_(v) a, XG_(v) b)             { return vuzp2q_f32(a, b); }
XG__INLINE XG_(v) XG_(mix_low)(XG_(v) a, XG_(v) b)          { return vzip1q_f32(a, b); }
XG__INLINE XG_(v) XG_(mix_high)(XG_(v) a, XG_(v) b)         { return vzip2q_f32(a, b); }
XG__INLINE XG_(d) XG_(wide_half)(const float *p)            { return vcvt_f64_f32(vld1_f32(p)); }

XG__INLINE XG_(v) XG_(bits_number)(XG_(v) a) { return vcvtq_f32_s32(vreinterpretq_s32_f32(a)); }

XG__INLINE XG_(v) XG_(copysign)(XG_(v) a, XG_(v) b)
{
    return vbslq_f32(vdupq_n_u32(0x80000000u), b, a);
}

#elif XG__PASS == XG__LEVEL_WASM

/* WebAssembly, always by clang: registers of 4, and pmin, pmax that are 3.1's with the operands
 * exchanged. There is no fused product and sum, so results differ from other machines', but not
 * from its own scalar level. */

#define XG__LANES 4
typedef float  XG_(v) __attribute__((vector_size(16)));
typedef v128_t XG_(m);
typedef double XG_(d) __attribute__((vector_size(16)));

XG__INLINE XG_(v) XG_(load)(const float *p)      { return (XG_(v))wasm_v128_load(p); }
XG__INLINE void   XG_(store)(float *p, XG_(v) a) { wasm_v128_store(p, (v128_t)a); }
XG__INLINE XG_(v) XG_(set1)(float x)             { return (XG_(v))wasm_f32x4_splat(x); }
XG__INLINE XG_(v) XG_(sqrt)(XG_(v) a)            { return (XG_(v))wasm_f32x4_sqrt((v128_t)a); }
XG__INLINE XG_(v) XG_(abs)(XG_(v) a)             { return (XG_(v))wasm_f32x4_abs((v128_t)a); }
XG__INLINE XG_(v) XG_(fma)(XG_(v) a, XG_(v) b, XG_(v) c)    { return a * b + c; }
XG__INLINE XG_(v) XG_(fnma)(XG_(v) a, XG_(v) b, XG_(v) c)   { return c - a * b; }
XG__INLINE XG_(m) XG_(less)(XG_(v) a, XG_(v) b)             { return (v128_t)(a < b); }
XG__INLINE XG_(m) XG_(less_equal)(XG_(v) a, XG_(v) b)       { return (v128_t)(a <= b); }

XG__INLINE XG_(v) XG_(select)(XG_(m) m, XG_(v) a, XG_(v) b)
{
    return (XG_(v))wasm_v128_bitselect((v128_t)a, (v128_t)b, m);
}

XG__INLINE XG_(v) XG_(min)(XG_(v) a, XG_(v) b)
{
    return (XG_(v))wasm_f32x4_pmin((v128_t)b, (v128_t)a);
}

XG__INLINE XG_(v) XG_(max)(XG_(v) a, XG_(v) b)
{
    return (XG_(v))wasm_f32x4_pmax((v128_t)b, (v128_t)a);
}

XG__INLINE XG_(v) XG_(copysign)(XG_(v) a, XG_(v) b)
{
    return XG_(select)(wasm_i32x4_splat(INT32_MIN), b, a);
}

XG__INLINE XG_(v) XG_(bits_number)(XG_(v) a)
{
    return (XG_(v))wasm_f32x4_convert_i32x4((v128_t)a);
}

XG__INLINE XG_(d) XG_(wide_half)(const float *p)
{
    return (XG_(d))wasm_f64x2_promote_low_f32x4(wasm_v128_load64_zero(p));
}

#define XG__SHUFFLE(name, ...)                                                                     \
    XG__INLINE XG_(v) XG_(name)(XG_(v) a, XG_(v) b)                                                \
    {                                                                                              \
        return __builtin_shufflevector(a, b, __VA_ARGS__);                                         \
    }
XG__SHUFFLE(evens,    0, 2, 4, 6)
XG__SHUFFLE(odds,     1, 3, 5, 7)
XG__SHUFFLE(mix_low,  0, 4, 1, 5)
XG__SHUFFLE(mix_high, 2, 6, 3, 7)
#undef XG__SHUFFLE

#else

/* x86: AVX2, since 2013, has 16 registers of 8; AVX-512, in servers since 2017, 32 of 16. What
 * differs but in their width is written once: XG__X86(add_ps) is _mm256_add_ps or _mm512_add_ps.
 * min and max return their second operand for NaN and for zeros of either sign, which is where
 * 3.1's definition comes from. */

#if XG__PASS == XG__LEVEL_AVX2
#define XG__LANES 8
#define XG__X86(name) _mm256_##name
typedef __m256  XG_(v);
typedef __m256  XG_(m);                            /* all ones or zeros */
typedef __m256d XG_(d);
typedef __m256i XG_(i);
#else
#define XG__LANES 16
#define XG__X86(name) _mm512_##name
typedef __m512    XG_(v);
typedef __mmask16 XG_(m);                          /* a bit a lane, in registers of their own */
typedef __m512d   XG_(d);
typedef __m512i   XG_(i);
#endif

XG__INLINE XG_(v) XG_(load)(const float *p)                 { return XG__X86(loadu_ps)(p); }
XG__INLINE void   XG_(store)(float *p, XG_(v) a)            { XG__X86(storeu_ps)(p, a); }
XG__INLINE XG_(v) XG_(set1)(float x)                        { return XG__X86(set1_ps)(x); }
XG__INLINE XG_(v) XG_(sqrt)(XG_(v) a)                       { return XG__X86(sqrt_ps)(a); }
XG__INLINE XG_(v) XG_(fma)(XG_(v) a, XG_(v) b, XG_(v) c)    { return XG__X86(fmadd_ps)(a, b, c); }
XG__INLINE XG_(v) XG_(fnma)(XG_(v) a, XG_(v) b, XG_(v) c)   { return XG__X86(fnmadd_ps)(a, b, c); }
XG__INLINE XG_(v) XG_(min)(XG_(v) a, XG_(v) b)              { return XG__X86(min_ps)(a, b); }
XG__INLINE XG_(v) XG_(max)(XG_(v) a, XG_(v) b)              { return XG__X86(max_ps)(a, b); }
XG__INLINE XG_(v) XG_(sign_bit)(void)                       { return XG__X86(set1_ps)(-0.0f); }
XG__INLINE XG_(v) XG_(abs)(XG_(v) a)       { return XG__X86(andnot_ps)(XG_(sign_bit)(), a); }
XG__INLINE XG_(v) XG_(bits_number)(XG_(v) a)          { return XG__X86(cvtepi32_ps)((XG_(i))a); }

XG__INLINE XG_(v) XG_(copysign)(XG_(v) a, XG_(v) b)
{
    return XG__X86(or_ps)(XG_(abs)(a), XG__X86(and_ps)(XG_(sign_bit)(), b));
}

XG__INLINE void XG_(turn_fours)(const XG_(v) *from, XG_(v) *to)
{
    const XG_(d) a = (XG_(d))XG__X86(unpacklo_ps)(from[0], from[1]);
    const XG_(d) b = (XG_(d))XG__X86(unpacklo_ps)(from[2], from[3]);
    const XG_(d) c = (XG_(d))XG__X86(unpackhi_ps)(from[0], from[1]);
    const XG_(d) d = (XG_(d))XG__X86(unpackhi_ps)(from[2], from[3]);
    to[0] = (XG_(v))XG__X86(unpacklo_pd)(a, b);
    to[1] = (XG_(v))XG__X86(unpackhi_pd)(a, b);
    to[2] = (XG_(v))XG__X86(unpacklo_pd)(c, d);
    to[3] = (XG_(v))XG__X86(unpackhi_pd)(c, d);
}

#if XG__PASS == XG__LEVEL_AVX2

/* By C's operators: so gcc knows that a mask is all ones or zeros, and does not ask once more. */
XG__INLINE XG_(m) XG_(less)(XG_(v) a, XG_(v) b)       { return (XG_(m))(a < b); }
XG__INLINE XG_(m) XG_(less_equal)(XG_(v) a, XG_(v) b) { return (XG_(m))(a <= b); }
XG__INLINE XG_(v) XG_(select)(XG_(m) m, XG_(v) a, XG_(v) b) { return _mm256_blendv_ps(b, a, m); }
XG__INLINE XG_(d) XG_(wide_half)(const float *p) { return _mm256_cvtps_pd(_mm_loadu_ps(p)); }

/* All ones in the first n lanes. */
XG__INLINE __m256i XG_(first)(size_t n)
{
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), lane);
}

XG__INLINE XG_(v) XG_(load_part)(const float *p, size_t n)
{
    return _mm256_maskload_ps(p, XG_(first)(n));
}

XG__INLINE void XG_(store_part)(float *p, XG_(v) a, size_t n)
{
    _mm256_maskstore_ps(p, XG_(first)(n), a);
}

/* Within the halves of the registers first; then quarters, or halves, change places. */
XG__INLINE XG_(v) XG_(evens)(XG_(v) a, XG_(v) b)
{
    return (XG_(v))_mm256_permute4x64_pd((XG_(d))_mm256_shuffle_ps(a, b, 0x88), 0xd8);
}

XG__INLINE XG_(v) XG_(odds)(XG_(v) a, XG_(v) b)
{
    return (XG_(v))_mm256_permute4x64_pd((XG_(d))_mm256_shuffle_ps(a, b, 0xdd), 0xd8);
}

XG__INLINE XG_(v) XG_(mix_low)(XG_(v) a, XG_(v) b)
{
    return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b), 0x20);
}

XG__INLINE XG_(v) XG_(mix_high)(XG_(v) a, XG_(v) b)
{
    return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b), 0x31);
}

XG__INLINE XG_(v) XG_(join_fours)(const float *const *from, size_t offset)
{
    const XG_(v) a = _mm256_castps128_ps256(_mm_loadu_ps(from[0] + offset));
    return _mm256_insertf128_ps(a, _mm_loadu_ps(from[4] + offset), 1);
}

XG__INLINE void XG_(part_fours)(XG_(v) a, float *const *to, size_t offset)
{
    _mm_storeu_ps(to[0] + offset, _mm256_castps256_ps128(a));
    _mm_storeu_ps(to[4] + offset, _mm256_extractf128_ps(a, 1));
}

/* First 4 x 4 squares within the halves of the registers, then the halves change places. */
XG__INLINE void XG_(transpose)(const float *from, size_t from_stride, float *to, size_t to_stride)
{
    XG_(v) r[8], u[8];
    size_t i;
    XG__UNROLL
    for (i = 0; i < 8; i++) r[i] = XG_(load)(from + i * from_stride);
    XG_(turn_fours)(r, u);
    XG_(turn_fours)(r + 4, u + 4);
    XG__UNROLL
    for (i = 0; i < 4; i++, to += to_stride) {
        XG_(store)(to, _mm256_permute2f128_ps(u[i], u[i + 4], 0x20));
    }
    XG__UNROLL
    for (i = 0; i < 4; i++, to += to_stride) {
        XG_(store)(to, _mm256_permute2f128_ps(u[i], u[i + 4], 0x31));
    }
}

#else /* AVX-512 */

XG__INLINE XG_(m) XG_(less)(XG_(v) a, XG_(v) b)
{
    return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ);
}

XG__INLINE XG_(m) XG_(less_equal)(XG_(v) a, XG_(v) b)
{
    return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ);
}

XG__INLINE XG_(v) XG_(select)(XG_(m) m, XG_(v) a, XG_(v) b)
{
    return _mm512_mask_blend_ps(m, b, a);
}

XG__INLINE XG_(d) XG_(wide_half)(const float *p) { return _mm512_cvtps_pd(_mm256_loadu_ps(p)); }

XG__INLINE XG_(m) XG_(first)(size_t n) { return (XG_(m))((1u << n) - 1u); }

XG__INLINE XG_(v) XG_(load_part)(const float *p, size_t n)
{
    return _mm512_maskz_loadu_ps(XG_(first)(n), p);
}

XG__INLINE void XG_(store_part)(float *p, XG_(v) a, size_t n)
{
    _mm512_mask_storeu_ps(p, XG_(first)(n), a);
}

/* Number 16 + i of the choice is number i of b. */
#define XG__CHOOSE(name, ...)                                                                      \
    XG__INLINE XG_(v) XG_(name)(XG_(v) a, XG_(v) b)                                                \
    {                                                                                              \
        return _mm512_permutex2var_ps(a, _mm512_setr_epi32(__VA_ARGS__), b);                       \
    }
XG__CHOOSE(evens,    0,  2, 4,  6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30)
XG__CHOOSE(odds,     1,  3, 5,  7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31)
XG__CHOOSE(mix_low,  0, 16, 1, 17, 2, 18,  3, 19,  4, 20,  5, 21,  6, 22,  7, 23)
XG__CHOOSE(mix_high, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
#undef XG__CHOOSE

XG__INLINE XG_(v) XG_(join_fours)(const float *const *from, size_t offset)
{
    XG_(v) a = _mm512_castps128_ps512(_mm_loadu_ps(from[0] + offset));
    a = _mm512_insertf32x4(a, _mm_loadu_ps(from[4] + offset), 1);
    a = _mm512_insertf32x4(a, _mm_loadu_ps(from[8] + offset), 2);
    return _mm512_insertf32x4(a, _mm_loadu_ps(from[12] + offset), 3);
}

XG__INLINE void XG_(part_fours)(XG_(v) a, float *const *to, size_t offset)
{
    _mm_storeu_ps(to[0] + offset, _mm512_castps512_ps128(a));
    _mm_storeu_ps(to[4] + offset, _mm512_extractf32x4_ps(a, 1));
    _mm_storeu_ps(to[8] + offset, _mm512_extractf32x4_ps(a, 2));
    _mm_storeu_ps(to[12] + offset, _mm512_extractf32x4_ps(a, 3));
}

/* First 4 x 4 squares within the quarters of the registers, then the quarters change places. */
XG__INLINE void XG_(transpose)(const float *from, size_t from_stride, float *to, size_t to_stride)
{
    XG_(v) r[16], u[16];
    size_t i;
    XG__UNROLL
    for (i = 0; i < 16; i++) r[i] = XG_(load)(from + i * from_stride);
    XG__UNROLL
    for (i = 0; i < 16; i += 4) XG_(turn_fours)(r + i, u + i);
    XG__UNROLL
    for (i = 0; i < 4; i++) {
        const XG_(v) a = u[i], b = u[i + 4], c = u[i + 8], d = u[i + 12];
        u[i] = _mm512_shuffle_f32x4(a, b, 0x88);                           /* quarters 0 and 2 */
        u[i + 4] = _mm512_shuffle_f32x4(a, b, 0xdd);                       /* quarters 1 and 3 */
        u[i + 8] = _mm512_shuffle_f32x4(c, d, 0x88);
        u[i + 12] = _mm512_shuffle_f32x4(c, d, 0xdd);
    }
    XG__UNROLL
    for (i = 0; i < 8; i++, to += to_stride) {
        XG_(store)(to, _mm512_shuffle_f32x4(u[i], u[i + 8], 0x88));
    }
    XG__UNROLL
    for (i = 0; i < 8; i++, to += to_stride) {
        XG_(store)(to, _mm512_shuffle_f32x4(u[i], u[i + 8], 0xdd));
    }
}

#endif
#undef XG__X86

#endif /* levels */

/* 3.1.1 What all levels share. Only levels of gcc and clang have vectors, and those two know C's
 *       operators and casts for them: number by number, and bit by bit. */

XG__INLINE XG_(v) XG_(add)(XG_(v) a, XG_(v) b)              { return a + b; }
XG__INLINE XG_(v) XG_(sub)(XG_(v) a, XG_(v) b)              { return a - b; }
XG__INLINE XG_(v) XG_(mul)(XG_(v) a, XG_(v) b)              { return a * b; }
XG__INLINE XG_(v) XG_(div)(XG_(v) a, XG_(v) b)              { return a / b; }
XG__INLINE XG_(v) XG_(neg)(XG_(v) a)                        { return -a; }

#if XG__LANES == 4

/* NEON and wasm have no masked access: parts of vectors go through a little memory. */
XG__INLINE XG_(v) XG_(load_part)(const float *p, size_t n)
{
    float room[4] = { 0, 0, 0, 0 };
    size_t i;
    for (i = 0; i < n; i++) room[i] = p[i];
    return XG_(load)(room);
}

XG__INLINE void XG_(store_part)(float *p, XG_(v) a, size_t n)
{
    float room[4];
    size_t i;
    XG_(store)(room, a);
    for (i = 0; i < n; i++) p[i] = room[i];
}

XG__INLINE void XG_(turn_fours)(const XG_(v) *from, XG_(v) *to)
{
    const XG_(v) a = XG_(mix_low)(from[0], from[2]), b = XG_(mix_low)(from[1], from[3]);
    const XG_(v) c = XG_(mix_high)(from[0], from[2]), d = XG_(mix_high)(from[1], from[3]);
    to[0] = XG_(mix_low)(a, b);
    to[1] = XG_(mix_high)(a, b);
    to[2] = XG_(mix_low)(c, d);
    to[3] = XG_(mix_high)(c, d);
}

XG__INLINE XG_(v) XG_(join_fours)(const float *const *from, size_t offset)
{
    return XG_(load)(from[0] + offset);
}

XG__INLINE void XG_(part_fours)(XG_(v) a, float *const *to, size_t offset)
{
    XG_(store)(to[0] + offset, a);
}

XG__INLINE void XG_(transpose)(const float *from, size_t from_stride, float *to, size_t to_stride)
{
    XG_(v) r[4], u[4];
    size_t i;
    XG__UNROLL
    for (i = 0; i < 4; i++) r[i] = XG_(load)(from + i * from_stride);
    XG_(turn_fours)(r, u);
    XG__UNROLL
    for (i = 0; i < 4; i++) XG_(store)(to + i * to_stride, u[i]);
}

#endif

#if XG__LANES > 1

typedef uint32_t XG_(u) __attribute__((vector_size(4 * XG__LANES)));
XG__INLINE XG_(u) XG_(bits)(XG_(v) a)    { return (XG_(u))a; }
XG__INLINE XG_(v) XG_(of_bits)(XG_(u) u) { return (XG_(v))u; }

XG__INLINE void XG_(load_fours)(const float *const *from, size_t offset, XG_(v) *a)
{
    XG_(v) r[4];
    int i;
    XG__UNROLL
    for (i = 0; i < 4; i++) r[i] = XG_(join_fours)(from + i, offset);
    XG_(turn_fours)(r, a);
}

XG__INLINE void XG_(store_fours)(const XG_(v) *a, float *const *to, size_t offset)
{
    XG_(v) r[4];
    int i;
    XG_(turn_fours)(a, r);
    XG__UNROLL
    for (i = 0; i < 4; i++) XG_(part_fours)(r[i], to + i, offset);
}

typedef struct XG_(w) { XG_(d) low, high; } XG_(w);
typedef XG_(d) XG_(loose) __attribute__((aligned(8), may_alias));       /* anywhere in memory */

XG__INLINE XG_(w) XG_(wide_load)(const float *p)
{
    XG_(w) w;
    w.low = XG_(wide_half)(p);
    w.high = XG_(wide_half)(p + XG__LANES / 2);
    return w;
}

XG__INLINE XG_(w) XG_(wide_load_part)(const float *p, size_t n)
{
    float room[XG__LANES];
    XG_(store)(room, XG_(load_part)(p, n));
    return XG_(wide_load)(room);
}

XG__INLINE XG_(w) XG_(wide_read)(const double *p)
{
    XG_(w) w;
    w.low = *(const XG_(loose) *)p;
    w.high = *(const XG_(loose) *)(p + XG__LANES / 2);
    return w;
}

XG__INLINE void XG_(wide_store)(double *p, XG_(w) a)
{
    *(XG_(loose) *)p = a.low;
    *(XG_(loose) *)(p + XG__LANES / 2) = a.high;
}

XG__INLINE XG_(w) XG_(wide_add)(XG_(w) a, XG_(w) b)
{
    a.low += b.low;
    a.high += b.high;
    return a;
}

XG__INLINE XG_(w) XG_(wide_add_square)(XG_(w) a, XG_(w) b)
{
    a.low += b.low * b.low;
    a.high += b.high * b.high;
    return a;
}

#endif

#ifndef XG_DOUBLE
XG__INLINE XG_(v) XG_(bits_add)(XG_(v) a, uint32_t u) { return XG_(of_bits)(XG_(bits)(a) + u); }
XG__INLINE XG_(v) XG_(bits_and)(XG_(v) a, uint32_t u) { return XG_(of_bits)(XG_(bits)(a) & u); }
XG__INLINE XG_(v) XG_(bits_up)(XG_(v) a)              { return XG_(of_bits)(XG_(bits)(a) << 23); }
XG__INLINE XG_(v) XG_(bits_down)(XG_(v) a)            { return XG_(of_bits)(XG_(bits)(a) >> 23); }
#endif

/* 3.2 Vector mathematics. One text for all levels, from the operations above only, so that all
 *     levels give the same bits. Largest errors, in units of the last place, over the whole range
 *     (every 7th float was tried, for pow every 211th; a denormal result is off by 1 at most, pow
 *     on wasm excepted):
 *
 *         exp 1.01    log 0.85    sigmoid 2.4    tanh 2.6    softplus 1.7
 *         pow  p = 2, 1/2, -1: 0.5    -1/2: 1.5    3, 3/2: 1.3    4: 1.9    other |p| <= 8: 1.3
 *              p = 33: 2.3    100: 7    (on wasm, which has no fma, up to 65)
 *
 *     0, infinities and NaN go where <math.h> sends them (-0 and -infinity in pow only if p is
 *     whole). In the double build that is what is called. */

#ifdef XG_DOUBLE

XG__INLINE XG_(v) XG_(exp)(XG_(v) x)            { return exp(x); }
XG__INLINE XG_(v) XG_(log)(XG_(v) x)            { return log(x); }
XG__INLINE XG_(v) XG_(log1p)(XG_(v) x)          { return log1p(x); }
XG__INLINE XG_(v) XG_(tanh)(XG_(v) x)           { return tanh(x); }
XG__INLINE XG_(v) XG_(pow)(XG_(v) x, xg_real p) { return pow(x, p); }

#else

/* 1.5 * 2^23: added to a number below 2^22, it rounds that to a whole one, in the low bits. */
#define XG__ROUNDER 12582912.0f

/* The whole number next to x * factor. */
XG__INLINE XG_(v) XG_(nearest)(XG_(v) x, float factor)
{
    const XG_(v) rounder = XG_(set1)(XG__ROUNDER);
    return XG_(sub)(XG_(fma)(x, XG_(set1)(factor), rounder), rounder);
}

/* 2^n for whole n in [-126,127]: n + 127 goes into the exponent field. */
XG__INLINE XG_(v) XG_(pow2)(XG_(v) n)
{
    return XG_(bits_up)(XG_(add)(n, XG_(set1)(XG__ROUNDER + 127)));
}

/* a 2^n for a in [1/2,2] and whole n in [-150,128], where 2^n alone need not exist: once 2^(n+25)
 * or 2^(n-1), which is exact, and once 2^-25 or 2, which may round. */
XG__INLINE XG_(v) XG_(scale)(XG_(v) a, XG_(v) n)
{
    const XG_(m) below = XG_(less)(n, XG_(set1)(0.0f));
    const XG_(v) up = XG_(set1)(XG__ROUNDER + 127 + 25), down = XG_(set1)(XG__ROUNDER + 127 - 1);
    const XG_(v) bias = XG_(select)(below, up, down);
    const XG_(v) rest = XG_(select)(below, XG_(set1)(1.0f / 33554432), XG_(set1)(2.0f));
    return XG_(mul)(XG_(mul)(a, XG_(bits_up)(XG_(add)(n, bias))), rest);
}

/* ln 2 in two parts, the first so short that its product with a 15-bit whole number is exact. */
#define XG__LN2_HIGH 0.693359375f
#define XG__LN2_LOW  (-2.12194440e-4f)
#define XG__LOG2_E   1.44269504f

/* e^r - 1 for |r| <= (ln 2)/2: r + r^2 Q(r), Q the minimax polynomial for a relative error of
 * 2^-28. */
XG__INLINE XG_(v) XG_(expm1_core)(XG_(v) r)
{
    XG_(v) q = XG_(set1)(1.383893541e-3f);
    q = XG_(fma)(q, r, XG_(set1)(8.369193412e-3f));
    q = XG_(fma)(q, r, XG_(set1)(4.166810215e-2f));
    q = XG_(fma)(q, r, XG_(set1)(1.666651666e-1f));
    q = XG_(fma)(q, r, XG_(set1)(4.999999404e-1f));
    return XG_(fma)(XG_(mul)(r, r), q, r);
}

/* e^(x + low), |low| far below |x|: e^x = 2^n e^r. The limits lie where the result has become 0 or
 * infinity, and stand first so that NaN passes. */
XG__INLINE XG_(v) XG_(exp_sum)(XG_(v) x, XG_(v) low)
{
    XG_(v) n, r;
    x = XG_(min)(XG_(set1)(89.0f), XG_(max)(XG_(set1)(-104.0f), x));
    n = XG_(nearest)(x, XG__LOG2_E);
    r = XG_(fnma)(n, XG_(set1)(XG__LN2_HIGH), x);
    r = XG_(add)(XG_(fnma)(n, XG_(set1)(XG__LN2_LOW), r), low);
    return XG_(scale)(XG_(add)(XG_(set1)(1.0f), XG_(expm1_core)(r)), n);
}

XG__INLINE XG_(v) XG_(exp)(XG_(v) x) { return XG_(exp_sum)(x, XG_(set1)(0.0f)); }

/* P of ln(1 + f) = f - f^2/2 + f^3 P(f), sqrt(1/2) <= 1 + f <= sqrt(2); relative error 2^-28. */
XG__INLINE XG_(v) XG_(log_core)(XG_(v) f)
{
    XG_(v) q = XG_(set1)(6.746663153e-2f);
    q = XG_(fma)(q, f, XG_(set1)(-1.167564020e-1f));
    q = XG_(fma)(q, f, XG_(set1)(1.188814491e-1f));
    q = XG_(fma)(q, f, XG_(set1)(-1.240558922e-1f));
    q = XG_(fma)(q, f, XG_(set1)(1.421955526e-1f));
    q = XG_(fma)(q, f, XG_(set1)(-1.666799635e-1f));
    q = XG_(fma)(q, f, XG_(set1)(2.000211924e-1f));
    q = XG_(fma)(q, f, XG_(set1)(-2.500000894e-1f));
    return XG_(fma)(q, f, XG_(set1)(3.333331347e-1f));
}

/* x = 2^e (1 + f) for positive x, sqrt(1/2) <= 1 + f < sqrt(2). 0x3f3504f3 are the bits of
 * sqrt(1/2): what lies between them and those of 1 is added, so that the exponent field steps at
 * sqrt(2), not at 2. A denormal x is brought into the normal range first. */
XG__INLINE void XG_(log_split)(XG_(v) x, XG_(v) *e, XG_(v) *f)
{
    const XG_(m) tiny = XG_(less)(x, XG_(set1)(1.17549435e-38f));
    const XG_(v) y = XG_(select)(tiny, XG_(mul)(x, XG_(set1)(8388608.0f)), x);
    const XG_(v) bias = XG_(select)(tiny, XG_(set1)(150.0f), XG_(set1)(127.0f));
    const XG_(v) u = XG_(bits_add)(y, 0x3f800000u - 0x3f3504f3u);
    const XG_(v) mantissa = XG_(bits_add)(XG_(bits_and)(u, 0x007fffffu), 0x3f3504f3u);
    *e = XG_(sub)(XG_(bits_number)(XG_(bits_down)(u)), bias);
    *f = XG_(sub)(mantissa, XG_(set1)(1.0f));
}

XG__INLINE XG_(v) XG_(log)(XG_(v) x)
{
    const XG_(v) zero = XG_(set1)(0.0f);
    XG_(v) e, f, f2, u, y;
    XG_(log_split)(x, &e, &f);
    f2 = XG_(mul)(f, f);
    u = XG_(fma)(f, XG_(log_core)(f), XG_(set1)(-0.5f));
    y = XG_(add)(f, XG_(fma)(e, XG_(set1)(XG__LN2_LOW), XG_(mul)(f2, u)));
    y = XG_(fma)(e, XG_(set1)(XG__LN2_HIGH), y);
    y = XG_(select)(XG_(less)(x, XG_(set1)(INFINITY)), y, x);          /* infinity, NaN */
    u = XG_(select)(XG_(less)(x, zero), XG_(set1)(NAN), XG_(set1)(-INFINITY));
    return XG_(select)(XG_(less_equal)(x, zero), u, y);
}

/* ln(1 + x) for x in [0,1]: above sqrt(2) - 1, ln 2 + ln((1 + x)/2). */
XG__INLINE XG_(v) XG_(log1p)(XG_(v) x)
{
    const XG_(m) low = XG_(less)(x, XG_(set1)(0.41421357f));
    const XG_(v) f = XG_(select)(low, x, XG_(fma)(x, XG_(set1)(0.5f), XG_(set1)(-0.5f)));
    const XG_(v) u = XG_(fma)(f, XG_(log_core)(f), XG_(set1)(-0.5f));
    const XG_(v) y = XG_(fma)(XG_(mul)(f, f), u, f);
    return XG_(select)(low, y, XG_(add)(y, XG_(set1)(0.693147181f)));
}

/* (e^2x - 1) / (e^2x + 1), with e^2x - 1 = 2^n (e^r - 1) + (2^n - 1): exact for small x. */
XG__INLINE XG_(v) XG_(tanh)(XG_(v) x)
{
    const XG_(v) one = XG_(set1)(1.0f);
    const XG_(v) y = XG_(mul)(XG_(set1)(2.0f), XG_(min)(XG_(set1)(10.0f), XG_(abs)(x)));
    const XG_(v) n = XG_(nearest)(y, XG__LOG2_E);
    const XG_(v) power = XG_(pow2)(n);
    XG_(v) r = XG_(fnma)(n, XG_(set1)(XG__LN2_HIGH), y);
    r = XG_(expm1_core)(XG_(fnma)(n, XG_(set1)(XG__LN2_LOW), r));
    r = XG_(fma)(power, r, XG_(sub)(power, one));
    return XG_(copysign)(XG_(div)(r, XG_(add)(r, XG_(set1)(2.0f))), x);
}

/* x^n by squaring. */
XG__INLINE XG_(v) XG_(power)(XG_(v) x, int n)
{
    XG_(v) y = XG_(set1)(1.0f);
    for (; n > 0; n >>= 1) {
        if (n & 1) y = XG_(mul)(y, x);
        x = XG_(mul)(x, x);
    }
    return y;
}

/* ln x as high + low, about 28 bits of it: the exponent of pow multiplies its error. Every low part
 * is the exact error of the sum or product before it (not on wasm, whose fma cannot see it). */
XG__INLINE void XG_(log_pair)(XG_(v) x, XG_(v) *high, XG_(v) *low)
{
    const XG_(v) half = XG_(set1)(0.5f), ln2 = XG_(set1)(XG__LN2_HIGH);
    XG_(v) e, f, f2, s, t, l;
    XG_(log_split)(x, &e, &f);
    f2 = XG_(mul)(f, f);
    s = XG_(fnma)(half, f2, f);                                        /* f - f^2/2 ...           */
    l = XG_(fnma)(half, f2, XG_(sub)(f, s));                           /* ... its rounding error  */
    l = XG_(fnma)(half, XG_(fma)(f, f, XG_(neg)(f2)), l);              /* ... and that of f^2     */
    l = XG_(fma)(XG_(mul)(f, f2), XG_(log_core)(f), l);
    t = XG_(fma)(e, ln2, s);
    l = XG_(add)(l, XG_(sub)(s, XG_(fnma)(e, ln2, t)));
    l = XG_(fma)(e, XG_(set1)(XG__LN2_LOW), l);
    *high = XG_(add)(t, l);
    *low = XG_(sub)(l, XG_(sub)(*high, t));
}

/* x^p through e^(p ln x); a negative x only if p is whole, and odd decides the sign. */
XG__INLINE XG_(v) XG_(pow_general)(XG_(v) x, float p, bool whole, bool odd)
{
    const XG_(v) zero = XG_(set1)(0.0f), vp = XG_(set1)(p);
    const XG_(v) a = whole ? XG_(abs)(x) : x;
    XG_(v) high, low, t, y;
    XG_(log_pair)(a, &high, &low);
    t = XG_(mul)(vp, high);
    low = XG_(fma)(vp, low, XG_(fma)(vp, high, XG_(neg)(t)));
    if (fabsf(p) > 1000) {                                  /* where t is huge low may be large */
        low = XG_(select)(XG_(less)(XG_(abs)(t), XG_(set1)(200.0f)), low, zero);
    }
    y = XG_(exp_sum)(t, low);
    t = p > 0 ? a : XG_(div)(XG_(set1)(1.0f), a);
    y = XG_(select)(XG_(less)(a, XG_(set1)(INFINITY)), y, t);          /* infinity, NaN */
    t = XG_(select)(XG_(less)(a, zero), XG_(set1)(NAN), XG_(set1)(p > 0 ? 0.0f : INFINITY));
    y = XG_(select)(XG_(less_equal)(a, zero), t, y);
    return odd ? XG_(copysign)(y, x) : y;
}

/* x^p. The exponents that occur most (2, 0.5, -1, -0.5, 3, 1.5) are products of x and its root, or
 * the inverse of one; p is the same for all lanes, so the processor foresees every branch. */
XG__INLINE XG_(v) XG_(pow)(XG_(v) x, xg_real p)
{
    const float size = fabsf(p);
    const int twice = size <= 4.0f ? (int)(2.0f * size) : 0;
    XG_(v) y;
    if ((float)twice != 2.0f * size || p < -1.0f) {
        const int n = size < 16777216.0f ? (int)size : 0;     /* beyond, all floats are even */
        const bool whole = (float)n == size || size >= 16777216.0f;
        return XG_(pow_general)(x, p, whole, whole && (n & 1) != 0);
    }
    y = XG_(power)(x, twice / 2);
    if (twice & 1) y = XG_(mul)(y, XG_(sqrt)(XG_(add)(x, XG_(set1)(0.0f))));   /* -0 becomes 0 */
    return p < 0 ? XG_(div)(XG_(set1)(1.0f), y) : y;
}

#endif

/* 1/(1+e^-x) from e^-|x|, which cannot overflow. */
XG__INLINE XG_(v) XG_(sigmoid)(XG_(v) x)
{
    const XG_(v) one = XG_(set1)(1);
    const XG_(v) e = XG_(exp)(XG_(neg)(XG_(abs)(x)));
    const XG_(v) top = XG_(select)(XG_(less)(x, XG_(set1)(0)), e, one);
    return XG_(div)(top, XG_(add)(one, e));
}

/* ln(1+e^x) = max(x,0) + ln(1+e^-|x|). */
XG__INLINE XG_(v) XG_(softplus)(XG_(v) x)
{
    const XG_(v) e = XG_(exp)(XG_(neg)(XG_(abs)(x)));
    return XG_(add)(XG_(max)(x, XG_(set1)(0)), XG_(log1p)(e));
}

/* 3.3 Pointwise kernels: a vector expression, and a loop along a row. */

/* In x, p, q. */
#define XG__MAP(name, expression)                                                                  \
    static void XG_(map_##name)(const xg_real *from, xg_real *y, size_t n, xg_real p_, xg_real q_) \
    {                                                                                              \
        const XG_(v) p = XG_(set1)(p_), q = XG_(set1)(q_);                                         \
        XG_(v) x;                                                                                  \
        size_t i;                                                                                  \
        XG__BY_FOUR                                                                                \
        for (i = 0; i + XG__LANES <= n; i += XG__LANES) {                                          \
            x = XG_(load)(from + i);                                                               \
            XG_(store)(y + i, expression);                                                         \
        }                                                                                          \
        if (i < n) {                                                                               \
            x = XG_(load_part)(from + i, n - i);                                                   \
            XG_(store_part)(y + i, expression, n - i);                                             \
        }                                                                                          \
        (void)p;                                                                                   \
        (void)q;                                                                                   \
    }

/* Where m holds 1, else 0. */
XG__INLINE XG_(v) XG_(truth)(XG_(m) m) { return XG_(select)(m, XG_(set1)(1), XG_(set1)(0)); }

/* Zeros and NaN pass through. */
XG__INLINE XG_(v) XG_(sign)(XG_(v) x)
{
    const XG_(v) zero = XG_(set1)(0);
    const XG_(v) y = XG_(select)(XG_(less)(x, zero), XG_(set1)(-1), x);
    return XG_(select)(XG_(less)(zero, x), XG_(set1)(1), y);
}

XG__INLINE XG_(v) XG_(relu)(XG_(v) x)
{
    return XG_(select)(XG_(less_equal)(x, XG_(set1)(0)), XG_(set1)(0), x);
}

XG__INLINE XG_(v) XG_(within)(XG_(v) x, XG_(v) p, XG_(v) q)
{
    const XG_(v) below = XG_(truth)(XG_(less_equal)(x, q));
    return XG_(select)(XG_(less_equal)(p, x), below, XG_(set1)(0));
}

XG__MAP(exp,      XG_(exp)(x))
XG__MAP(log,      XG_(log)(x))
XG__MAP(sqrt,     XG_(sqrt)(x))
XG__MAP(sigmoid,  XG_(sigmoid)(x))
XG__MAP(tanh,     XG_(tanh)(x))
XG__MAP(softplus, XG_(softplus)(x))
XG__MAP(abs,      XG_(abs)(x))
XG__MAP(affine,   XG_(fma)(p, x, q))
XG__MAP(relu,     XG_(relu)(x))
XG__MAP(clamp,    XG_(min)(q, XG_(max)(p, x)))
XG__MAP(sign,     XG_(sign)(x))
XG__MAP(step,     XG_(truth)(XG_(less)(XG_(set1)(0), x)))
XG__MAP(within,   XG_(within)(x, p, q))
XG__MAP(square,   XG_(mul)(x, x))
XG__MAP(pow_any,  XG_(pow)(x, p_))

static void XG_(map_pow)(const xg_real *x, xg_real *y, size_t n, xg_real p, xg_real q)
{
    if (p == 2) XG_(map_square)(x, y, n, p, q);
    else if (p != p) XG_(map_affine)(x, y, n, p, q);       /* NaN whatever x is, 0 too */
    else XG_(map_pow_any)(x, y, n, p, q);
}

/* In a and b. Which of the two walk is the same for all of a row. */
#define XG__ZIP_ROW(load_a, load_b, expression)                                                    \
        XG__BY_FOUR                                                                                \
        for (i = 0; i < whole; i += XG__LANES) {                                                   \
            load_a;                                                                                \
            load_b;                                                                                \
            XG_(store)(y + i, expression);                                                         \
        }
#define XG__ZIP(name, expression)                                                                  \
    static void XG_(zip_##name)(const xg_real *pa, size_t step_a, const xg_real *pb,               \
                                size_t step_b, xg_real *y, size_t n)                               \
    {                                                                                              \
        XG_(v) a = XG_(set1)(*pa), b = XG_(set1)(*pb);                                             \
        const size_t whole = n / XG__LANES * XG__LANES;                                            \
        size_t i;                                                                                  \
        if (step_a && step_b) {                                                                    \
            XG__ZIP_ROW(a = XG_(load)(pa + i), b = XG_(load)(pb + i), expression)                  \
        } else if (step_a) {                                                                       \
            XG__ZIP_ROW(a = XG_(load)(pa + i), (void)0, expression)                                \
        } else if (step_b) {                                                                       \
            XG__ZIP_ROW((void)0, b = XG_(load)(pb + i), expression)                                \
        } else {                                                                                   \
            XG__ZIP_ROW((void)0, (void)0, expression)                                              \
        }                                                                                          \
        if (i < n) {                                                                               \
            if (step_a) a = XG_(load_part)(pa + i, n - i);                                         \
            if (step_b) b = XG_(load_part)(pb + i, n - i);                                         \
            XG_(store_part)(y + i, expression, n - i);                                             \
        }                                                                                          \
    }

XG__ZIP(add,  XG_(add)(a, b))
XG__ZIP(sub,  XG_(sub)(a, b))
XG__ZIP(mul,  XG_(mul)(a, b))
XG__ZIP(div,  XG_(div)(a, b))
XG__ZIP(max,  XG_(select)(XG_(less_equal)(b, a), a, b))
XG__ZIP(min,  XG_(select)(XG_(less_equal)(a, b), a, b))
XG__ZIP(less, XG_(truth)(XG_(less)(a, b)))
XG__ZIP(gate, XG_(select)(XG_(less)(XG_(set1)(0), b), a, XG_(set1)(0)))

/* 3.4 Sums, in double, along a row: all of it, into 16 partial sums that take every 16th number
 *     each; or each number to a sum of its own. Lanes are the same on every level, so bits are
 *     too. */

static void XG_(sum_lanes)(double *lane, const xg_real *x, size_t n)
{
    XG_(w) sum[16 / XG__LANES];
    size_t i, at;
    int l;
    XG__UNROLL
    for (l = 0; l < 16 / XG__LANES; l++) sum[l] = XG_(wide_read)(lane + l * XG__LANES);
    for (i = 0; i + 16 <= n; i += 16) {
        XG__UNROLL
        for (l = 0; l < 16 / XG__LANES; l++) {
            sum[l] = XG_(wide_add)(sum[l], XG_(wide_load)(x + i + l * XG__LANES));
        }
    }
    XG__UNROLL
    for (l = 0; l < 16 / XG__LANES; l++) {
        at = i + (size_t)l * XG__LANES;
        if (at < n) {
            const size_t rest = xg__min(n - at, XG__LANES);
            sum[l] = XG_(wide_add)(sum[l], XG_(wide_load_part)(x + at, rest));
        }
        XG_(wide_store)(lane + l * XG__LANES, sum[l]);
    }
}

static void XG_(sum_each)(double *sum, const xg_real *x, size_t n)
{
    size_t i;
    for (i = 0; i + XG__LANES <= n; i += XG__LANES) {
        XG_(wide_store)(sum + i, XG_(wide_add)(XG_(wide_read)(sum + i), XG_(wide_load)(x + i)));
    }
    for (; i < n; i++) sum[i] += (double)x[i];
}

/* 3.4.1 Optimiser steps; the formulas stand at 7.4. Everything passes once, from memory: what lies
 *       XG__FAR numbers ahead is fetched, since the processor's own fetching ends with a page. */
#define XG__FAR 1024

/* The sum of squares, as sum_lanes has it. */
static void XG_(square_lanes)(double *lane, const xg_real *x, size_t n)
{
    XG_(w) sum[16 / XG__LANES];
    size_t i;
    int l;
    XG__UNROLL
    for (l = 0; l < 16 / XG__LANES; l++) sum[l] = XG_(wide_read)(lane + l * XG__LANES);
    for (i = 0; i + 16 <= n; i += 16) {
        XG__PREFETCH(x + i, XG__FAR);
        XG__UNROLL
        for (l = 0; l < 16 / XG__LANES; l++) {
            sum[l] = XG_(wide_add_square)(sum[l], XG_(wide_load)(x + i + l * XG__LANES));
        }
    }
    XG__UNROLL
    for (l = 0; l < 16 / XG__LANES; l++) XG_(wide_store)(lane + l * XG__LANES, sum[l]);
    for (; i < n; i++) lane[i % 16] += (double)x[i] * (double)x[i];
}

/* Zero times what is not finite is NaN, and no sum with it is a number again. */
static double XG_(check)(const xg_real *x, size_t n)
{
    const XG_(v) zero = XG_(set1)(0);
    XG_(v) sum[4];
    xg_real lane[XG__LANES], all = 0;
    size_t i;
    int l;
    XG__UNROLL
    for (l = 0; l < 4; l++) sum[l] = zero;
    for (i = 0; i + 4 * XG__LANES <= n; i += 4 * XG__LANES) {
        XG__UNROLL
        for (l = 0; l < 4; l++) {
            XG__PREFETCH(x + i + l * XG__LANES, XG__FAR);
            sum[l] = XG_(fma)(zero, XG_(load)(x + i + l * XG__LANES), sum[l]);
        }
    }
    for (; i < n; i++) all += 0 * x[i];
    for (l = 1; l < 4; l++) sum[0] = XG_(add)(sum[0], sum[l]);
    XG_(store)(lane, sum[0]);
    for (l = 0; l < XG__LANES; l++) all += lane[l];
    return (double)all;
}

/* A whole vector, or the n numbers that are left. */
XG__INLINE XG_(v) XG_(load_most)(const xg_real *p, size_t n)
{
    return n < XG__LANES ? XG_(load_part)(p, n) : XG_(load)(p);
}

XG__INLINE void XG_(store_most)(xg_real *p, XG_(v) a, size_t n)
{
    if (n < XG__LANES) XG_(store_part)(p, a, n);
    else XG_(store)(p, a);
}

/* The same of what comes from far away. */
XG__INLINE XG_(v) XG_(load_far)(const xg_real *p, size_t n)
{
    XG__PREFETCH(p, XG__FAR);
    return XG_(load_most)(p, n);
}

/* The gradient as it counts: scaled by clipping, plus what decay adds. */
XG__INLINE XG_(v) XG_(pull)(const xg__rates *r, XG_(v) w, XG_(v) g)
{
    return XG_(fma)(XG_(set1)(r->decay), w, XG_(mul)(XG_(set1)(r->scale), g));
}

static void XG_(update_plain)(const xg__rates *rates, xg_real *w, const xg_real *g, xg_real *first,
                              xg_real *second, size_t n)
{
    const xg__rates r = *rates;                /* a copy, which no store can change */
    size_t i;
    (void)first;
    (void)second;
    for (i = 0; i < n; i += XG__LANES) {
        const XG_(v) old = XG_(load_far)(w + i, n - i);
        const XG_(v) d = XG_(pull)(&r, old, XG_(load_far)(g + i, n - i));
        XG_(store_most)(w + i, XG_(fnma)(XG_(set1)(r.lr), d, old), n - i);
    }
}

static void XG_(update_momentum)(const xg__rates *rates, xg_real *w, const xg_real *g,
                                 xg_real *first, xg_real *second, size_t n)
{
    const xg__rates r = *rates;
    size_t i;
    (void)second;
    for (i = 0; i < n; i += XG__LANES) {
        const XG_(v) old = XG_(load_far)(w + i, n - i), momentum = XG_(set1)(r.momentum);
        const XG_(v) d = XG_(pull)(&r, old, XG_(load_far)(g + i, n - i));
        const XG_(v) v = XG_(fma)(momentum, XG_(load_far)(first + i, n - i), d);
        const XG_(v) step = r.nesterov ? XG_(fma)(momentum, v, d) : v;
        XG_(store_most)(first + i, v, n - i);
        XG_(store_most)(w + i, XG_(fnma)(XG_(set1)(r.lr), step, old), n - i);
    }
}

static void XG_(update_adam)(const xg__rates *rates, xg_real *w, const xg_real *g, xg_real *first,
                             xg_real *second, size_t n)
{
    const xg__rates r = *rates;
    size_t i;
    for (i = 0; i < n; i += XG__LANES) {
        const XG_(v) old = XG_(load_far)(w + i, n - i);
        const XG_(v) d = XG_(pull)(&r, old, XG_(load_far)(g + i, n - i));
        const XG_(v) d1 = XG_(mul)(XG_(set1)(r.fresh1), d), d2 = XG_(mul)(XG_(set1)(r.fresh2), d);
        const XG_(v) m = XG_(fma)(XG_(set1)(r.beta1), XG_(load_far)(first + i, n - i), d1);
        const XG_(v) v = XG_(fma)(XG_(set1)(r.beta2), XG_(load_far)(second + i, n - i),
                                  XG_(mul)(d2, d));
        const XG_(v) size = XG_(fma)(XG_(sqrt)(v), XG_(set1)(r.root), XG_(set1)(r.eps));
        const XG_(v) step = XG_(div)(XG_(mul)(XG_(set1)(r.rate), m), size);
        XG_(store_most)(first + i, m, n - i);
        XG_(store_most)(second + i, v, n - i);
        XG_(store_most)(w + i, XG_(fma)(XG_(set1)(r.keep), old, XG_(neg)(step)), n - i);
    }
}

/* 3.4.2 Pools: what lies in a window of a plane, for a vector of windows side by side. The few that
 *       the plane's sides clip go one by one. Places in a plane count row by row. */

/* i times step, in lane i. */
XG__INLINE XG_(v) XG_(ramp)(int step)
{
    static const xg_real lane[16] = { 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15 };
    return XG_(mul)(XG_(load)(lane), XG_(set1)((xg_real)step));
}

/* 2n numbers, n <= XG__LANES, as two vectors. */
XG__INLINE void XG_(load_two)(const xg_real *p, size_t n, XG_(v) *a, XG_(v) *b)
{
    *a = XG_(load_most)(p, 2 * n);
    *b = 2 * n > XG__LANES ? XG_(load_most)(p + XG__LANES, 2 * n - XG__LANES) : XG_(set1)(0);
}

/* Number `offset` of each of n windows, the first of which starts at p. Stride 2 reads only what
 * lies in some window: of a pair, the offset's own number and one before it, or if there is none,
 * the one after it. */
XG__INLINE XG_(v) XG_(tap)(const xg_real *p, int offset, const xg_window *k, size_t n)
{
    XG_(v) a, b;
    xg_real room[XG__LANES];
    size_t i;
    if (k->stride == 1) return XG_(load_most)(p + offset, n);
    if (k->stride == 2 && k->kw > 1) {
        XG_(load_two)(p + (offset > 0 ? offset - 1 : 0), n, &a, &b);
        return offset > 0 ? XG_(odds)(a, b) : XG_(evens)(a, b);
    }
    p += offset;
    for (i = 0; i < XG__LANES; i++) room[i] = i < n ? p[(size_t)k->stride * i] : 0;
    return XG_(load)(room);
}

/* Every window of a plane: `one` makes y's number of a window that may be clipped; `some` those of
 * n that are not, the first in column c. Their rows are [r, end). z: another result. NULL: not
 * asked for. */
XG__INLINE void XG_(each_window)(const xg__pool_job *job, const xg_real *x, xg_real *y, xg_real *z,
    void (*one)(const xg__pool_job *job, const xg_real *x, int r, int end, int ox, xg_real *y,
                xg_real *z),
    void (*some)(const xg__pool_job *job, const xg_real *x, int r, int end, int c, size_t n,
                 xg_real *y, xg_real *z))
{
    int oy, ox, r, end;
    for (oy = 0; oy < job->oh; oy++) {
        xg__clip(oy, job->window.kh, job->h, job->window, &r, &end);
        for (ox = 0; ox < job->ow;) {
            const int c = ox * job->window.stride - job->window.pad;
            size_t n = 1;
            if (ox < job->inner || ox >= job->outer) {
                one(job, x, r, end, ox, y, z);
            } else if (ox + XG__LANES <= job->outer) {
                n = XG__LANES;
                some(job, x, r, end, c, XG__LANES, y, z);
            } else {
                n = (size_t)(job->outer - ox);
                some(job, x, r, end, c, n, y, z);
            }
            ox += (int)n;
            if (y != NULL) y += n;
            if (z != NULL) z += n;
        }
    }
}

/* Means: sums in double, of the numbers in their order; what is clipped counts as 0. */
static void XG_(avgpool_one)(const xg__pool_job *job, const xg_real *x, int r, int end, int ox,
                             xg_real *y, xg_real *z)
{
    int first, stop, c;
    double sum = 0;
    xg__clip(ox, job->window.kw, job->w, job->window, &first, &stop);
    for (; r < end; r += job->window.dilation) {
        const xg_real *row = x + (size_t)r * (size_t)job->w;
        for (c = first; c < stop; c += job->window.dilation) sum += (double)row[c];
    }
    *y = (xg_real)(sum * job->share);
    (void)z;
}

XG__INLINE void XG_(avgpool_some)(const xg__pool_job *job, const xg_real *x, int r, int end, int c,
                                  size_t n, xg_real *y, xg_real *z)
{
    const xg_window k = job->window;
    xg_real room[XG__LANES];
    double total[XG__LANES] = { 0 };
    XG_(w) sum = XG_(wide_read)(total);
    size_t i;
    int dx;
    for (; r < end; r += k.dilation) {
        const xg_real *row = x + (size_t)r * (size_t)job->w;
        for (dx = 0; dx < k.kw; dx++) {
            XG_(store)(room, XG_(tap)(row + c, dx * k.dilation, &k, n));
            sum = XG_(wide_add)(sum, XG_(wide_load)(room));
        }
    }
    XG_(wide_store)(total, sum);
    for (i = 0; i < n; i++) y[i] = (xg_real)(total[i] * job->share);
    (void)z;
}

static void XG_(avgpool)(const xg__pool_job *job, const xg_real *x, xg_real *y)
{
    XG_(each_window)(job, x, y, NULL, XG_(avgpool_one), XG_(avgpool_some));
}

/* Maxima: where each stands, and the maximum itself; one of both may be NULL. */
static void XG_(argpool_one)(const xg__pool_job *job, const xg_real *x, int r, int end, int ox,
                             xg_real *index, xg_real *y)
{
    int first, stop, c, best;
    xg__clip(ox, job->window.kw, job->w, job->window, &first, &stop);
    best = r * job->w + first;
    for (; r < end; r += job->window.dilation) {
        for (c = first; c < stop; c += job->window.dilation) {
            const int at = r * job->w + c;
            if (x[at] > x[best] || x[at] != x[at]) best = at;          /* a NaN wins */
        }
    }
    if (index != NULL) *index = (xg_real)best;
    if (y != NULL) *y = x[best];
}

/* The best so far of each window, and where it is. */
typedef struct XG_(lead) { XG_(v) best, at; } XG_(lead);

/* Where t, found at `at`, exceeds the best, it becomes that. The first of equals wins, and the last
 * NaN: after one, no number exceeds the infinite. */
XG__INLINE void XG_(contest)(XG_(v) t, XG_(v) at, XG_(lead) *lead)
{
    const XG_(v) bar = XG_(min)(lead->best, XG_(set1)((xg_real)INFINITY));
    const XG_(m) keep = XG_(less_equal)(t, bar);               /* never holds for NaN */
    lead->best = XG_(select)(keep, lead->best, t);
    lead->at = XG_(select)(keep, lead->at, at);
}

XG__INLINE void XG_(argpool_some)(const xg__pool_job *job, const xg_real *x, int r, int end, int c,
                                  size_t n, xg_real *index, xg_real *y)
{
    const xg_window k = job->window;
    const XG_(v) lane = XG_(ramp)(k.stride);
    XG_(lead) lead;
    int dx;
    lead.best = XG_(set1)(-(xg_real)INFINITY);
    lead.at = XG_(add)(lane, XG_(set1)((xg_real)(r * job->w + c)));
    for (; r < end; r += k.dilation) {
        const int start = r * job->w + c;
        XG_(v) at = XG_(add)(lane, XG_(set1)((xg_real)start));
        for (dx = 0; dx < k.kw; dx++, at = XG_(add)(at, XG_(set1)((xg_real)k.dilation))) {
            XG_(contest)(XG_(tap)(x + start, dx * k.dilation, &k, n), at, &lead);
        }
    }
    if (index != NULL) XG_(store_most)(index, lead.at, n);
    if (y != NULL) XG_(store_most)(y, lead.best, n);
}

/* What is done to the sums of a channel: 1 and -0 change nothing. No ReLU before more is added. */
typedef struct XG_(channel) { XG_(v) scale, shift; bool relu; } XG_(channel);

XG__INLINE XG_(v) XG_(finish)(const XG_(channel) *c, XG_(v) sum)
{
    const XG_(v) scaled = XG_(fma)(sum, c->scale, XG_(set1)((xg_real)-0.0));   /* see 3.0.1 */
    const XG_(v) x = XG_(add)(scaled, c->shift);
    return c->relu ? XG_(relu)(x) : x;
}

/* The better of each pair; the first number of each is at `at`. */
XG__INLINE XG_(lead) XG_(best_of_pairs)(XG_(v) first, XG_(v) second, XG_(v) at)
{
    XG_(lead) lead;
    lead.best = first;
    lead.at = at;
    XG_(contest)(second, XG_(add)(at, XG_(set1)(1)), &lead);
    return lead;
}

/* The best of windows of 2x2, whose first number is at `at` of a plane w wide. */
XG__INLINE XG_(lead) XG_(best_of_fours)(XG_(v) a, XG_(v) b, XG_(v) c, XG_(v) d, XG_(v) at, int w)
{
    const XG_(v) below = XG_(add)(at, XG_(set1)((xg_real)w));
    XG_(lead) top = XG_(best_of_pairs)(a, b, at);
    const XG_(lead) bottom = XG_(best_of_pairs)(c, d, below);
    XG_(contest)(bottom.best, bottom.at, &top);
    return top;
}

/* Windows of 2x2 side by side, the most frequent by far: those of two rows, which lie `pitch` apart
 * and begin at number `start` of a plane w wide. Numbers are finished first, if c is not NULL. */
XG__INLINE void XG_(argpool_rows)(const xg_real *x, size_t pitch, int start, int w,
                                  const XG_(channel) *c, xg_real *index, xg_real *y)
{
    const int ow = w / 2;
    XG_(v) v[4];
    int ox, i;
    for (ox = 0; ox < ow; ox += XG__LANES, x += 2 * XG__LANES) {
        const size_t n = xg__min((size_t)(ow - ox), XG__LANES);
        const XG_(v) at = XG_(add)(XG_(ramp)(2), XG_(set1)((xg_real)(start + 2 * ox)));
        XG_(lead) lead;
        XG_(load_two)(x, n, &v[0], &v[1]);
        XG_(load_two)(x + pitch, n, &v[2], &v[3]);
        XG__UNROLL
        for (i = 0; i < 4; i++) v[i] = c != NULL ? XG_(finish)(c, v[i]) : v[i];
        lead = XG_(best_of_fours)(XG_(evens)(v[0], v[1]), XG_(odds)(v[0], v[1]),
                                  XG_(evens)(v[2], v[3]), XG_(odds)(v[2], v[3]), at, w);
        if (index != NULL) XG_(store_most)(index + ox, lead.at, n);
        if (y != NULL) XG_(store_most)(y + ox, lead.best, n);
    }
}

static void XG_(argpool_pairs)(const xg__pool_job *job, const xg_real *x, xg_real *index,
                               xg_real *y)
{
    const size_t w = (size_t)job->w, ow = (size_t)job->ow;
    int oy;
    for (oy = 0; oy < job->oh; oy++, x += 2 * w) {
        XG_(argpool_rows)(x, w, 2 * oy * job->w, job->w, NULL, index, y);
        if (index != NULL) index += ow;
        if (y != NULL) y += ow;
    }
}

static void XG_(argpool)(const xg__pool_job *job, const xg_real *x, xg_real *index, xg_real *y)
{
    const xg_window k = job->window;
    if (k.kh == 2 && k.kw == 2 && k.stride == 2 && k.dilation == 1 && k.pad == 0) {
        XG_(argpool_pairs)(job, x, index, y);
    } else {
        XG_(each_window)(job, x, index, y, XG_(argpool_one), XG_(argpool_some));
    }
}

/* Of each window of 2x2, the number at its index. */
static void XG_(pick_pairs)(const xg__pool_job *job, const xg_real *x, const xg_real *index,
                            xg_real *y)
{
    const XG_(v) lane = XG_(ramp)(2), one = XG_(set1)(1);
    int oy, ox, r;
    for (oy = 0; oy < job->oh; oy++, index += job->ow, y += job->ow) {
        for (ox = 0; ox < job->ow; ox += XG__LANES) {
            const size_t n = xg__min((size_t)(job->ow - ox), XG__LANES);
            const XG_(v) chosen = XG_(load_most)(index + ox, n);
            XG_(v) found = XG_(set1)(0), a, b, at;
            for (r = 2 * oy; r < 2 * oy + 2; r++) {
                const int start = r * job->w + 2 * ox;
                XG_(load_two)(x + start, n, &a, &b);
                at = XG_(add)(lane, XG_(set1)((xg_real)start));
                found = XG_(select)(XG_(less_equal)(at, chosen), XG_(evens)(a, b), found);
                at = XG_(add)(at, one);
                found = XG_(select)(XG_(less_equal)(at, chosen), XG_(odds)(a, b), found);
            }
            XG_(store_most)(y + ox, found, n);
        }
    }
}

/* a[0] b[0] a[1] b[1] .., n of each. */
XG__INLINE void XG_(store_pairs)(xg_real *to, XG_(v) a, XG_(v) b, size_t n)
{
    XG_(store_most)(to, XG_(mix_low)(a, b), 2 * n);
    if (2 * n <= XG__LANES) return;
    XG_(store_most)(to + XG__LANES, XG_(mix_high)(a, b), 2 * n - XG__LANES);
}

/* The transpose: each window of 2x2 gets its g at its index, and else 0; like sums that start at 0,
 * these have no -0. Rows r and r + 1 of a plane w wide, from a row of windows. */
static void XG_(place_rows)(const xg_real *g, const xg_real *index, int r, int w, xg_real *x)
{
    const XG_(v) zero = XG_(set1)(0), one = XG_(set1)(1), row = XG_(set1)((xg_real)w);
    const XG_(v) lane = XG_(ramp)(2);
    const int ow = w / 2;
    int ox;
    x[w - 1] = x[2 * w - 1] = 0;                                       /* of an odd width */
    for (ox = 0; ox < ow; ox += XG__LANES) {
        const size_t n = xg__min((size_t)(ow - ox), XG__LANES);
        const XG_(v) from = XG_(add)(XG_(load_most)(g + ox, n), zero);
        const XG_(v) chosen = XG_(load_most)(index + ox, n);
        const XG_(v) at = XG_(add)(lane, XG_(set1)((xg_real)(r * w + 2 * ox)));
        const XG_(m) first = XG_(less_equal)(chosen, at);
        const XG_(m) above = XG_(less_equal)(chosen, XG_(add)(at, one));
        const XG_(m) not_last = XG_(less_equal)(chosen, XG_(add)(at, row));
        XG_(store_pairs)(x + 2 * ox, XG_(select)(first, from, zero),
                         XG_(select)(first, zero, XG_(select)(above, from, zero)), n);
        XG_(store_pairs)(x + w + 2 * ox,
                         XG_(select)(above, zero, XG_(select)(not_last, from, zero)),
                         XG_(select)(not_last, zero, from), n);
    }
}

/* What no window covers is 0. */
static void XG_(place_pairs)(const xg__pool_job *job, const xg_real *g, const xg_real *index,
                             xg_real *x)
{
    const size_t ow = (size_t)job->ow;
    int oy, ox;
    for (oy = 0; oy < job->oh; oy++, g += ow, index += ow, x += 2 * job->w) {
        XG_(place_rows)(g, index, 2 * oy, job->w, x);
    }
    for (ox = 0; 2 * job->oh < job->h && ox < job->w; ox++) x[ox] = 0;  /* of an odd height */
}

/* ============================================================================================== *
 *  3.5 gemm and convolution                                                                      *
 * ============================================================================================== *
 *
 * One driver multiplies matrices: out[r,c] = sum over k of rows[r,k] * cols[k,c]. The matrix
 * product and the three convolutions differ in what rows, columns and k are, and where these lie:
 *
 *                 rows         columns          k
 *     gemm        i of op(A)   j of op(B)       k                (or columns of B by rows of A)
 *     conv        o            (n, oy, ox)      (c, ky, kx)
 *     conv_dx     c            (n, y, x)        (o, ky, kx)      by phases of the stride
 *                 (n, oy, ox)  (c, ky, kx)      o                or by shares, where pixels are few
 *     conv_dw     o            (c, ky, kx)      (n, oy, ox)      (or rows and columns exchanged)
 *
 * Outputs are cut into units, a block of rows by a block of columns, and k into blocks. A unit is
 * one worker's. For each k block it packs its rows and columns into scratch that fits the cache, as
 * the micro-kernel wants to read them, and multiplies. The micro-kernel keeps XG__MR rows by XG__NV
 * vectors of columns in registers. It broadcasts numbers of a row; rows lie with k innermost (often
 * they do so already and are not packed), or are turned and lined up XG__MR at a time, k by k.
 * Columns lie in panels of XG__NR, k by k. Where a matrix has very many, a unit packs one part of
 * them after the other, and its turned rows are lined up once for all parts.
 *
 * There is no im2col buffer: what a k block needs of its images is copied once, with padding, to a
 * stage (3.5.4), where each tap sees neighbouring pixels as neighbours. Packing then copies runs.
 *
 * Numeric contract. The sum over a k block is a chain of fma in the order of k, from 0; blocks are
 * added to the output in order. They are those of XG_(cut_axis) with XG__BLOCK_K. Where outputs are
 * few and sums long, k is also cut in chunks of blocks (XG_(chunks_for)), which are added in order.
 * Both depend on the shapes alone. All else (what is vectorised, how units are cut, which operand
 * gives the rows) cannot change a bit and is chosen for speed. */

#if XG__LANES == 16            /* 32 registers: 24 sums, 3 vectors of columns, 1 number of a row  */
#define XG__MR 8
#define XG__NV 3
#define XG__BLOCK_COLS 400     /* a unit's, unless it is cut finer for the workers' sake: packed, */
#else                          /* they fill half of a second cache of 1 MB, or here of 512 KB     */
#define XG__MR 6               /* 16 registers: 12 sums, 2 vectors of columns, 1 number of a row  */
#define XG__NV 2
#define XG__BLOCK_COLS 224
#endif
#define XG__NR (XG__NV * XG__LANES)
#define XG__ROOM (XG__MR * (XG__NR + XG__BLOCK_K) + XG__LANES)   /* of a tile and a slice */

#define XG__BLOCK_K    288     /* the longest k block: 32 channels of a 3x3 window                */
#define XG__BLOCK_PARTS 3      /* a matrix product's unit has so many times XG__BLOCK_COLS        */
#define XG__BLOCK_ROWS 512     /* a unit's rows; those of one that has columns for each tap       */
#define XG__BLOCK_ROWS_ACROSS 128
#define XG__BLOCK_COLS_ACROSS 288
#define XG__BLOCK_COLS_STAGED 4096   /* of one whose columns are read from the stage              */
#define XG__BLOCK_AREA 51200   /* outputs of a unit that has few columns                          */
#define XG__STRIP      256     /* an input gradient's weights are transposed in pieces: at least  */
#define XG__STRIP_O    128     /* so many numbers of c and taps, and so many of o                 */

/* 3.5.1 Cutting. Each axis is `major` times `minor` long: (images, pixels), (channels, taps) or
 *       (1, n). A block is several whole majors, or a piece of one. */
typedef struct XG_(cut) {
    size_t major, minor;
    size_t group, piece;       /* extents of the longest block; one of the two is a whole axis    */
    size_t pieces, blocks;     /* blocks of one major; blocks in all                              */
    size_t unit;               /* pieces are multiples of this, but for the last                  */
} XG_(cut);

/* One block: majors [major, major + majors), minors likewise. */
typedef struct XG_(span) { size_t major, majors, minor, minors; } XG_(span);

XG__INLINE size_t XG_(ceil_div)(size_t a, size_t b) { return (a + b - 1) / b; }

XG__INLINE size_t XG_(round_up)(size_t a, size_t unit) { return (a + unit - 1) / unit * unit; }

/* An axis that is not cut yet. */
static XG_(cut) XG_(axis)(size_t major, size_t minor)
{
    const XG_(cut) cut = { major, minor, 0, 0, 0, 0, 0 };
    return cut;
}

/* Cuts blocks of about `target`, as equal as can be. All pieces but one are multiples of `unit`. */
static XG_(cut) XG_(cut_axis)(XG_(cut) cut, size_t target, size_t unit)
{
    cut.group = cut.pieces = 1;
    cut.piece = cut.minor;
    cut.unit = unit;
    cut.blocks = 0;
    if (cut.minor == 0) return cut;            /* of k, where a phase has no taps */
    if (cut.minor > target) {
        const size_t count = XG_(ceil_div)(cut.minor, target);
        cut.piece = XG_(round_up)(XG_(ceil_div)(cut.minor, count), unit);
        cut.pieces = XG_(ceil_div)(cut.minor, cut.piece);
        cut.piece = xg__min(cut.piece, cut.minor);
    } else {
        cut.group = XG_(ceil_div)(cut.major, XG_(ceil_div)(cut.major, target / cut.minor));
    }
    cut.blocks = XG_(ceil_div)(cut.major, cut.group) * cut.pieces;
    return cut;
}

/* Where piece i begins: they differ by one unit at most, and longer ones lie among shorter ones, so
 * that workers get equal shares. Those of k (unit 1) are equal but for the last. */
XG__INLINE size_t XG_(piece)(const XG_(cut) *cut, size_t i)
{
    const size_t units = XG_(ceil_div)(cut->minor, cut->unit);
    if (cut->unit == 1) return xg__min(i * cut->piece, cut->minor);
    return xg__min(XG_(ceil_div)(i * units, cut->pieces) * cut->unit, cut->minor);
}

static XG_(span) XG_(block)(const XG_(cut) *cut, size_t i)
{
    XG_(span) span;
    span.major = i / cut->pieces * cut->group;
    span.majors = xg__min(cut->major - span.major, cut->group);
    span.minor = XG_(piece)(cut, i % cut->pieces);
    span.minors = XG_(piece)(cut, i % cut->pieces + 1) - span.minor;
    return span;
}

XG__INLINE size_t XG_(length)(XG_(span) span) { return span.majors * span.minors; }

XG__INLINE size_t XG_(longest)(const XG_(cut) *cut) { return cut->group * cut->piece; }

/* Where a span begins, counted along the axis. */
XG__INLINE size_t XG_(start)(const XG_(cut) *cut, XG_(span) span)
{
    return span.major * cut->minor + span.minor;
}

/* 3.5.2 Packing. One index of an operand's block jumps, number i beginning at base + offset[i];
 *       along the other, numbers are neighbours, in runs. */
typedef struct XG_(run) { size_t from, to, length; } XG_(run);

typedef struct XG_(source) {
    const xg_real *base;
    const size_t *offset;
    size_t offsets;
    size_t stride;             /* the step between offsets if it is even, else 0                  */
    XG_(run) *run;
    size_t runs;
    bool along_k;              /* runs are along k, offsets along rows or columns                 */
    bool loose;                /* reading a whole vector at the end of a run is allowed           */
} XG_(source);

/* Copies a run; `ahead` lies one that will be copied soon. The last vector is stored whole: what it
 * spills is overwritten by what follows, and behind all of it there must be room for a vector. */
XG__INLINE void XG_(copy_run)(const xg_real *from, xg_real *to, size_t length, size_t ahead)
{
    size_t e = 0;
    for (; e + XG__LANES <= length; e += XG__LANES) {
        XG__PREFETCH(from + e, ahead);
        XG_(store)(to + e, XG_(load)(from + e));
    }
    if (e < length) {
        XG__PREFETCH(from + e, ahead);
        XG_(store)(to + e, XG_(load_part)(from + e, length - e));
    }
}

/* A whole line of a panel. */
XG__INLINE void XG_(copy_panel)(const xg_real *from, xg_real *to, size_t ahead)
{
    int e;
    for (e = 0; e < XG__NR; e += 16) XG__PREFETCH(from + e, ahead);
    XG__UNROLL
    for (e = 0; e < XG__NR; e += XG__LANES) XG_(store)(to + e, XG_(load)(from + e));
}

/* The same with every step-th number. */
XG__INLINE void XG_(copy_steps)(const xg_real *from, size_t step, xg_real *to, size_t length,
                                size_t ahead)
{
    size_t e;
    for (e = 0; e < length * step; e += 16) XG__PREFETCH(from + e, ahead);
    XG__PREFETCH(from + length * step - 1, ahead);
    if (step == 2) {           /* whole vectors only where the last number of a pair exists */
        for (; length > XG__LANES; length -= XG__LANES, to += XG__LANES, from += 2 * XG__LANES) {
            XG_(store)(to, XG_(evens)(XG_(load)(from), XG_(load)(from + XG__LANES)));
        }
        if (length > 0) {
            const size_t reach = 2 * length - 1, low = xg__min(reach, XG__LANES);
            XG_(store)(to, XG_(evens)(XG_(load_part)(from, low),
                                      XG_(load_part)(from + XG__LANES, reach - low)));
            return;
        }
    }
    for (; length > 0; length--, from += step) *to++ = *from;
}

/* Stores a run (or adds it to what is there), spilling nothing. */
XG__INLINE void XG_(put_run)(const xg_real *from, xg_real *to, size_t length, bool add)
{
    size_t e = 0;
    for (; e + XG__LANES <= length; e += XG__LANES) {
        const XG_(v) v = XG_(load)(from + e);
        XG_(store)(to + e, add ? XG_(add)(XG_(load)(to + e), v) : v);
    }
    if (e < length) {
        const size_t n = length - e;
        const XG_(v) v = XG_(load_part)(from + e, n);
        XG_(store_part)(to + e, add ? XG_(add)(XG_(load_part)(to + e, n), v) : v, n);
    }
}

/* to[i * pitch + run.to + e] = source[i][run.from + e]. */
static void XG_(copy)(const XG_(source) *s, xg_real *to, size_t pitch)
{
    const XG_(run) *run, *end = s->run + s->runs;
    size_t i;
    for (i = 0; i < s->offsets; i++, to += pitch) {
        const xg_real *from = s->base + s->offset[i];
        if (s->loose) {        /* runs are no longer than a vector (see cut_runs) */
            for (run = s->run; run < end; run++) {
                XG_(store)(to + run->to, XG_(load)(from + run->from));
            }
        } else {
            for (run = s->run; run < end; run++) {
                const xg_real *at = from + run->from;
                if (run->length == XG__NR) XG_(copy_panel)(at, to + run->to, s->stride);
                else XG_(copy_run)(at, to + run->to, run->length, s->stride);
            }
        }
    }
}

/* Prepares runs for copying. Runs of columns (panel != 0) are cut where a panel ends, runs of a
 * loose source into vectors. There is room for `room` runs. */
static void XG_(cut_runs)(XG_(source) *s, size_t panel, size_t room)
{
    XG_(run) *old = s->run + room - s->runs, *run = s->run;
    size_t r;
    memmove(old, s->run, s->runs * sizeof *old);
    for (r = 0; r < s->runs; r++) {
        XG_(run) rest = old[r];
        while (rest.length > 0) {
            size_t part = rest.length;
            if (panel) part = xg__min(part, XG__NR - rest.to % XG__NR);
            if (s->loose) part = xg__min(part, XG__LANES);
            *run = rest;
            run->length = part;
            if (panel) run->to = rest.to / XG__NR * panel + rest.to % XG__NR;
            run++;
            rest.from += part;
            rest.to += part;
            rest.length -= part;
        }
    }
    s->runs = (size_t)(run - s->run);
}

/* A square or part of one: to[e * pitch + i] = source[first + i][from + e], i < rows, e < columns.
 * For e < whole, missing rows are stored too, as zeros. At `room` two squares find room. */
static void XG_(turn_square)(const XG_(source) *s, size_t first, size_t rows, size_t from,
                             size_t columns, xg_real *to, size_t pitch, size_t whole, xg_real *room)
{
    xg_real *turned = room + XG__LANES * XG__LANES;
    size_t i, e;
    for (i = 0; i < XG__LANES; i++) {
        XG_(v) v = XG_(set1)(0);
        if (i < rows) {
            const xg_real *p = s->base + s->offset[first + i] + from;
            v = columns < XG__LANES ? XG_(load_part)(p, columns) : XG_(load)(p);
        }
        XG_(store)(room + i * XG__LANES, v);
    }
    XG_(transpose)(room, XG__LANES, turned, XG__LANES);
    for (e = 0; e < columns; e++) {
        const XG_(v) v = XG_(load)(turned + e * XG__LANES);
        if (e < whole || rows == XG__LANES) XG_(store)(to + e * pitch, v);
        else XG_(store_part)(to + e * pitch, v, rows);
    }
}

/* Exchanges the two indices: to[(run.to + e) * pitch + i] = source[i][run.from + e]. If panel != 0,
 * `to` is panels of columns of that size, and i is a column. Where all i are fewer than a
 * vector, zeros stored for missing ones are overwritten by the next e, except at a run's end. */
static void XG_(turn)(const XG_(source) *s, xg_real *to, size_t pitch, size_t panel, xg_real *room)
{
    size_t r, e, i;
    for (i = 0; i < s->offsets; i += XG__LANES) {
        const size_t rows = xg__min(XG__LANES, s->offsets - i);
        const size_t end = rows == pitch ? XG_(ceil_div)(XG__LANES, rows) - 1 : SIZE_MAX;
        xg_real *column = to + (panel ? i / XG__NR * panel + i % XG__NR : i);
        for (r = 0; r < s->runs; r++) {
            const size_t from = s->run[r].from, length = s->run[r].length;
            xg_real *place = column + s->run[r].to * pitch;
            for (e = 0; e < length; e += XG__LANES, place += XG__LANES * pitch) {
                const size_t columns = xg__min(XG__LANES, length - e);
                if (s->stride && rows == XG__LANES && columns == XG__LANES) {
                    XG_(transpose)(s->base + s->offset[i] + from + e, s->stride, place, pitch);
                } else {
                    const size_t left = length - e;
                    const size_t whole = panel ? left : left < end ? 0 : left - end;
                    XG_(turn_square)(s, i, rows, from + e, columns, place, pitch, whole, room);
                }
            }
        }
    }
}

/* What will be read next: some rows of numbers. Multiplying one block fetches those of the next, a
 * few lines a tile, so that packing does not wait for memory. */
typedef struct XG_(soon) {
    const xg_real *base;
    size_t rows, stride, length;
    size_t row, at;            /* where the row begins that is fetched now, how much of it is     */
} XG_(soon);

XG__INLINE void XG_(fetch)(XG_(soon) *s, size_t lines)
{
    for (; lines > 0 && s->rows > 0; lines--) {
        XG__PREFETCH(s->base, s->row + s->at);
        s->at += 16;
        if (s->at >= s->length) {
            s->at = 0;
            s->row += s->stride;
            s->rows--;
        }
    }
}

/* 3.5.3 Multiplying. A packed block of rows times a packed block of columns: */
typedef struct XG_(product) {
    size_t rows, columns, k;
    const xg_real *a;          /* number t of row i is at a + i * a_stride + t                    */
    size_t a_stride;
    bool a_turned;             /* no, at a + t * a_stride + i                                     */
    const xg_real *b;          /* panel p begins at b + p * panel, its line t step[t] further on  */
    size_t panel;
    const size_t *step;
    bool scattered;            /* step[t] is not t * XG__NR                                       */
    xg_real *c;
    size_t c_stride;
    bool first;                /* the first k block: store, later ones add                        */
    bool exact;                /* c has no room for vectors to reach beyond the last column       */
    xg_real *held;             /* turned rows, lined up, are kept here for more columns; or NULL  */
    bool again;                /* they are here already                                           */
    XG_(soon) soon;
} XG_(product);

/* Some of its rows, at most XG__MR, which all panels pass: number t of row i is at
 * a + i * stride + t or, where XG__MR turned rows are lined up, at a + t * XG__MR + i. */
typedef struct XG_(slice) {
    size_t rows;
    const xg_real *a;
    size_t stride;
    bool lined;
    size_t ahead;              /* so far on lie the next rows, of which each tile fetches ...     */
    size_t from, end;          /* ... numbers [from, end)                                         */
} XG_(slice);

/* One product of the sum for each number of a tile. Rows or columns, the fewer of them are loaded
 * first, or there would not be registers enough. */
XG__INLINE void XG_(multiply_add)(const int rows, const int vectors, const xg_real *a,
                                  size_t stride, const xg_real *line, size_t panel, XG_(v) *sum)
{
    const int early = rows < vectors ? rows : 0, late = rows - early;
    XG_(v) number[XG__MR], column[2 * XG__NV];
    int i, j;
    XG__UNROLL
    for (i = 0; i < early; i++) number[i] = XG_(set1)(a[(size_t)i * stride]);
    XG__UNROLL
    for (j = 0; j < vectors; j++) {
        column[j] = XG_(load)(line + (j < XG__NV ? 0 : panel) + j % XG__NV * XG__LANES);
        XG__UNROLL
        for (i = 0; i < early; i++) {
            sum[i * vectors + j] = XG_(fma)(number[i], column[j], sum[i * vectors + j]);
        }
    }
    XG__UNROLL
    for (i = 0; i < late; i++) {
        number[i] = XG_(set1)(a[(size_t)i * stride]);
        XG__UNROLL
        for (j = 0; j < vectors; j++) {
            sum[i * vectors + j] = XG_(fma)(number[i], column[j], sum[i * vectors + j]);
        }
    }
}

#if XG__PASS == XG__LEVEL_AVX2
/* The sums of a full tile over the first k / 4 * 4 numbers of its rows; says how many these are.
 * Written by hand, because compilers move sums between registers, and where another thread has half
 * of the decoders every instruction more than these counts. */
XG__INLINE size_t XG_(sum_fours)(bool lined, const float *a, size_t stride, const float *b,
                                 size_t k, __m256 *sum)
{
#define XG__ROW(number, left, right)                                                               \
    "vbroadcastss " number ", %%ymm14\n\t"                                                         \
    "vfmadd231ps %%ymm12, %%ymm14, %" #left "\n\t"                                                 \
    "vfmadd231ps %%ymm13, %%ymm14, %" #right "\n\t"
#define XG__STEP(t, apart)                                                                         \
    "vmovups 64*" #t "(%[b]), %%ymm12\n\t"                                                         \
    "vmovups 64*" #t "+32(%[b]), %%ymm13\n\t"                                                      \
    XG__ROW(#t "*" apart "(%[a])", 0, 1)                                                           \
    XG__ROW(#t "*" apart "(%[a], %[row])", 2, 3)                                                   \
    XG__ROW(#t "*" apart "(%[a], %[row], 2)", 4, 5)                                                \
    XG__ROW(#t "*" apart "(%[half])", 6, 7)                                                        \
    XG__ROW(#t "*" apart "(%[half], %[row])", 8, 9)                                                \
    XG__ROW(#t "*" apart "(%[half], %[row], 2)", 10, 11)
#define XG__ZERO(i) "vxorps %" #i ", %" #i ", %" #i "\n\t"
#define XG__FOURS(apart)                                                                           \
    __asm__(XG__ZERO(0) XG__ZERO(1) XG__ZERO(2) XG__ZERO(3) XG__ZERO(4) XG__ZERO(5)                \
            XG__ZERO(6) XG__ZERO(7) XG__ZERO(8) XG__ZERO(9) XG__ZERO(10) XG__ZERO(11)              \
            ".p2align 5\n"                                                                         \
            "1:\n\t"                                                                               \
            XG__STEP(0, apart) XG__STEP(1, apart) XG__STEP(2, apart) XG__STEP(3, apart)            \
            "add $4*" apart ", %[a]\n\t"                                                           \
            "add $4*" apart ", %[half]\n\t"                                                        \
            "add $256, %[b]\n\t"                                                                   \
            "dec %[fours]\n\t"                                                                     \
            "jnz 1b"                                                                               \
            : "=&x"(sum[0]), "=&x"(sum[1]), "=&x"(sum[2]), "=&x"(sum[3]), "=&x"(sum[4]),           \
              "=&x"(sum[5]), "=&x"(sum[6]), "=&x"(sum[7]), "=&x"(sum[8]), "=&x"(sum[9]),           \
              "=&x"(sum[10]), "=&x"(sum[11]),                                                      \
              [a] "+r"(a), [half] "+r"(half), [b] "+r"(b), [fours] "+r"(fours)                     \
            : [row] "r"(row)                                                                       \
            : "xmm12", "xmm13", "xmm14", "cc", "memory")
    const size_t row = stride * sizeof *a;
    const float *half = a + 3 * stride;
    size_t fours = k / 4;
    if (fours == 0) return 0;
    if (lined) XG__FOURS("24");
    else XG__FOURS("4");
    return k / 4 * 4;
#undef XG__FOURS
#undef XG__ZERO
#undef XG__STEP
#undef XG__ROW
}
#endif

/* The micro-kernel: c[i][j] (+)= sum over t of row i's number t * b[step[t] + j]. It is called with
 * constants for rows and vectors, so that the loops over them unroll and the sums live in
 * registers. */
XG__INLINE void XG_(micro)(const int rows, const int vectors, const XG_(product) *p,
                           const XG_(slice) *s, const xg_real *b, xg_real *c, size_t c_stride,
                           bool first)
{
    const size_t k = p->k, row = s->lined ? 1 : s->stride, apart = s->lined ? XG__MR : 1;
    XG_(v) sum[XG__MR * XG__NV];
    size_t t;
    int i, j;
    XG__UNROLL
    for (i = 0; i < rows * vectors; i++) sum[i] = XG_(set1)(0);
    if (!first) {
        XG__UNROLL
        for (i = 0; i < rows; i++) {
            XG__UNROLL
            for (j = 0; j < vectors; j++) XG__PREFETCH(c + (size_t)i * c_stride, j * XG__LANES);
        }
    }
    for (t = s->from; t < s->end; t += 16) {
        for (i = 0; i < rows; i++) XG__PREFETCH(s->a + (size_t)i * row + t, s->ahead);
    }
    t = 0;
#if XG__PASS == XG__LEVEL_AVX2
    if (rows == XG__MR && vectors == XG__NV && !p->scattered) {
        t = XG_(sum_fours)(s->lined, s->a, row, b, k, sum);
    }
#endif
    for (; t < k; t++) {
        XG_(multiply_add)(rows, vectors, s->a + t * apart, row, b + p->step[t], p->panel, sum);
    }
    XG__UNROLL
    for (i = 0; i < rows; i++) {
        xg_real *line = c + (size_t)i * c_stride;
        XG__UNROLL
        for (j = 0; j < vectors; j++, line += XG__LANES) {
            const XG_(v) x = sum[i * vectors + j];
            XG_(store)(line, first ? x : XG_(add)(XG_(load)(line), x));
        }
    }
}

/* A tile with fewer rows or columns has its own code, and costs less than a full one. One of half
 * the rows or fewer takes two panels, or it would have too few sums to keep the processor busy. */
static void XG_(tile)(size_t vectors, const XG_(product) *p, const XG_(slice) *s, const xg_real *b,
                      xg_real *c, size_t c_stride, bool first)
{
#define XG__TILE(r, v) \
    case (r) * 8 + (v): XG_(micro)(r, v, p, s, b, c, c_stride, first); break;
#if XG__NV == 3
#define XG__PANEL(r) XG__TILE(r, 1) XG__TILE(r, 2) XG__TILE(r, 3)
#define XG__PANELS(r) XG__PANEL(r) XG__TILE(r, 4) XG__TILE(r, 5) XG__TILE(r, 6)
#else
#define XG__PANEL(r) XG__TILE(r, 1) XG__TILE(r, 2)
#define XG__PANELS(r) XG__PANEL(r) XG__TILE(r, 3) XG__TILE(r, 4)
#endif
    switch (s->rows * 8 + vectors) {
    XG__PANELS(1) XG__PANELS(2) XG__PANELS(3)
#if XG__MR == 8
    XG__PANELS(4) XG__PANEL(5) XG__PANEL(6) XG__PANEL(7) XG__PANEL(8)
#else
    XG__PANEL(4) XG__PANEL(5) XG__PANEL(6)
#endif
    }
#undef XG__PANELS
#undef XG__PANEL
#undef XG__TILE
}

/* Lines up XG__MR rows that lie number by number; or fewer of them, which become rows of k numbers.
 * `left` rows can be read. What a vector spills, the next one overwrites. */
static void XG_(line_up)(const xg_real *a, size_t stride, size_t rows, size_t left, size_t k,
                         xg_real *to)
{
    const size_t last = (size_t)(XG__MR > XG__LANES ? XG__MR - XG__LANES : 0);
    size_t t, i;
    for (t = 0; t < k; t++, a += stride) {
        if (rows < XG__MR) {
            for (i = 0; i < rows; i++) to[i * k + t] = a[i];
        } else if (left < XG__LANES) {
            for (i = 0; i < XG__MR; i++) to[t * XG__MR + i] = a[i];
        } else {
            XG__PREFETCH(a, 16);
            for (i = 0; i < XG__MR; i += XG__LANES) {
                const size_t row = xg__min(i, last);
                XG_(store)(to + t * XG__MR + row, XG_(load)(a + row));
            }
        }
    }
}

/* The slice that begins at row i; `room` is for turned rows, if they are not held. */
static void XG_(cut_slice)(const XG_(product) *p, size_t i, xg_real *room, XG_(slice) *s)
{
    const size_t left = p->rows - i;
    s->rows = xg__min(XG__MR, left);
    s->a = p->a + i * p->a_stride;
    s->stride = p->a_stride;
    s->lined = p->a_turned && s->rows == XG__MR;
    s->ahead = XG__MR * p->a_stride;
    s->from = s->end = 0;
    if (!p->a_turned) return;
    if (p->held != NULL) room = p->held + i * p->k;
    if (!p->again) XG_(line_up)(p->a + i, p->a_stride, s->rows, left, p->k, room);
    s->a = room;
    s->stride = p->k;
}

/* A slice stays in the first cache while all panels of columns pass it, and the second cache keeps
 * the panels. Outputs are written along their rows. `room` is for a tile and a slice. */
static void XG_(multiply)(const XG_(product) *p, xg_real *room)
{
    const size_t tiles = XG_(ceil_div)(p->rows, XG__MR) * XG_(ceil_div)(p->columns, XG__NR);
    XG_(soon) soon = p->soon;
    const size_t lines = soon.rows * XG_(ceil_div)(soon.length, 16) / tiles + 1;
    const size_t share = XG_(round_up)(xg__max(p->k * XG__NR / p->columns, 64), 16);
    XG_(slice) s;
    size_t wide, next, i, j, r;
    for (i = 0; i < p->rows; i += XG__MR) {
        XG_(cut_slice)(p, i, room + XG__MR * XG__NR, &s);
        wide = s.rows <= XG__MR / 2 ? 2 * XG__NR : XG__NR;
        next = i + XG__MR < p->rows && !p->a_turned ? p->k : 0;
        for (j = 0; j < p->columns; j += wide, s.from = s.end) {
            const size_t columns = xg__min(wide, p->columns - j);
            const size_t vectors = XG_(ceil_div)(columns, XG__LANES);
            const xg_real *b = p->b + j / XG__NR * p->panel;
            xg_real *c = p->c + i * p->c_stride + j;
            s.end = xg__min(s.from + share, next);
            XG_(fetch)(&soon, lines);
            if (!p->exact || columns % XG__LANES == 0) {
                XG_(tile)(vectors, p, &s, b, c, p->c_stride, p->first);
                continue;
            }
            XG_(tile)(vectors, p, &s, b, room, wide, true);
            for (r = 0; r < s.rows; r++) {
                XG_(put_run)(room + r * wide, c + r * p->c_stride, columns, !p->first);
            }
        }
    }
}

/* 3.5.4 Windows. Through tap (i, j), pixel (gy, gx) of a grid sees pixel (y, x) of an image,
 *           y = gy * stride + ty.first + i * ty.delta
 *       and x likewise, or 0 outside. The grid of a convolution is its output; that of an input
 *       gradient is a phase of x, and its image is g.
 *
 * The stage holds, padding included, what the pixels of a block see. A stride splits the image into
 * phases, every stride-th row and pixel, of which the stage has those that a tap sees; in a phase,
 * each tap sees neighbours as neighbours. Order: channel, phase, image, row, pixel. */
typedef struct XG_(taps) { int count, first, delta; } XG_(taps);

typedef struct XG_(window) {
    int h, w, gh, gw;          /* image, grid                                                     */
    int stride;
    XG_(taps) ty, tx;
    size_t image;              /* from one image to the next                                      */
    bool plain;                /* 1x1, every pixel sees itself: no stage is needed                */
} XG_(window);

typedef struct XG_(stage) {
    int phases_y, phases_x;
    int top, left;             /* number of the first row and pixel in the whole phase            */
    int rows, width;           /* of a phase as staged                                            */
    size_t image, phase;       /* from one image, one phase to the next                           */
} XG_(stage);

XG__INLINE int XG_(clamp)(int x, int low, int high) { return x < low ? low : x > high ? high : x; }

/* Where tap i of pixel 0 lies: so many whole strides, and a rest in [0, stride). */
XG__INLINE int XG_(tap_rest)(const XG_(taps) *taps, int stride, int i)
{
    const int rest = (taps->first + i * taps->delta) % stride;
    return rest < 0 ? rest + stride : rest;
}

XG__INLINE int XG_(tap_whole)(const XG_(taps) *taps, int stride, int i)
{
    return (taps->first + i * taps->delta - XG_(tap_rest)(taps, stride, i)) / stride;
}

/* How far apart taps with the same rest are: stride over the greatest common divisor of it and
 * delta. */
static int XG_(period)(int stride, int delta)
{
    int a = stride, b = delta < 0 ? -delta : delta;
    while (b != 0) {
        const int rest = a % b;
        a = b;
        b = rest;
    }
    return stride / a;
}

static XG_(stage) XG_(stage_of)(const XG_(window) *w, XG_(span) pixels)
{
    const int s = w->stride, gw = w->gw;
    const int row = (int)pixels.minor / gw, last = (int)(pixels.minor + pixels.minors - 1) / gw;
    const int y0 = XG_(tap_whole)(&w->ty, s, 0), y1 = XG_(tap_whole)(&w->ty, s, w->ty.count - 1);
    const int x0 = XG_(tap_whole)(&w->tx, s, 0), x1 = XG_(tap_whole)(&w->tx, s, w->tx.count - 1);
    XG_(stage) stage;
    stage.phases_y = XG_(clamp)(XG_(period)(s, w->ty.delta), 0, w->ty.count);
    stage.phases_x = XG_(clamp)(XG_(period)(s, w->tx.delta), 0, w->tx.count);
    stage.top = row + (y0 < y1 ? y0 : y1);
    stage.left = x0 < x1 ? x0 : x1;
    stage.rows = last - row + 1 + (y0 < y1 ? y1 - y0 : y0 - y1);
    stage.width = gw + (x0 < x1 ? x1 - x0 : x0 - x1);
    stage.image = (size_t)stage.rows * (size_t)stage.width;
    stage.phase = stage.image * pixels.majors;
    return stage;
}

/* One phase of one image: the rows and pixels that are rest_y and rest_x past a multiple of the
 * stride. */
static void XG_(stage_phase)(const XG_(window) *w, const XG_(stage) *s, int rest_y, int rest_x,
                             const xg_real *x, xg_real *to)
{
    const int step = w->stride, all = (w->w - rest_x + step - 1) / step;
    const int begin = XG_(clamp)(-s->left, 0, s->width);
    const int end = XG_(clamp)(all - s->left, begin, s->width);
    const size_t length = (size_t)(end - begin), area = (size_t)w->h * (size_t)w->w;
    int r, i;
    for (r = 0; r < s->rows; r++, to += s->width) {
        const int y = (s->top + r) * step + rest_y;
        const bool inside = y >= 0 && y < w->h && begin < end;
        for (i = 0; i < begin; i++) to[i] = 0;
        if (inside) {
            const xg_real *from = x + (size_t)y * (size_t)w->w + (begin + s->left) * step + rest_x;
            if (step == 1) XG_(copy_run)(from, to + begin, length, area);
            else XG_(copy_steps)(from, (size_t)step, to + begin, length, area);
        }
        for (i = inside ? end : begin; i < s->width; i++) to[i] = 0;
    }
}

/* Stages some channels of some images; x is the first of them. */
static void XG_(stage_fill)(const XG_(window) *w, const XG_(stage) *s, const xg_real *x,
                            size_t channels, size_t images, xg_real *to)
{
    size_t c, i;
    int py, px;
    for (c = 0; c < channels; c++, x += (size_t)w->h * (size_t)w->w) {
        for (py = 0; py < s->phases_y; py++) {
            for (px = 0; px < s->phases_x; px++) {
                const int rest_y = XG_(tap_rest)(&w->ty, w->stride, py);
                const int rest_x = XG_(tap_rest)(&w->tx, w->stride, px);
                for (i = 0; i < images; i++, to += s->image) {
                    XG_(stage_phase)(w, s, rest_y, rest_x, x + i * w->image, to);
                }
            }
        }
    }
}

/* Where in the stage each (channel, tap) begins for grid row `row`. The inner index is the tap, or
 * the channel if `taps_first`. */
static void XG_(stage_offsets)(const XG_(window) *w, const XG_(stage) *s, XG_(span) span, int row,
                               bool taps_first, size_t *offset)
{
    const size_t channel = (size_t)s->phases_y * (size_t)s->phases_x * s->phase;
    size_t t, c;
    for (t = 0; t < span.minors; t++) {
        const int i = (int)(span.minor + t) / w->tx.count, j = (int)(span.minor + t) % w->tx.count;
        const int phase = i % s->phases_y * s->phases_x + j % s->phases_x;
        const int y = XG_(tap_whole)(&w->ty, w->stride, i) + row - s->top;
        const int x = XG_(tap_whole)(&w->tx, w->stride, j) - s->left;
        const size_t at = (size_t)phase * s->phase + (size_t)y * (size_t)s->width + (size_t)x;
        for (c = 0; c < span.majors; c++) {
            offset[taps_first ? t * span.majors + c : c * span.minors + t] = c * channel + at;
        }
    }
}

/* The stage of a weight gradient can hold channels as neighbours instead, in panels: then what a
 * tap sees of all pixels is a panel of columns as it stands, and each number is transposed once,
 * not once a tap. Rows and pixels lie as in the image, with any stride. */
static XG_(stage) XG_(stage_across)(const XG_(window) *w, XG_(span) pixels)
{
    const int first = (int)pixels.minor / w->gw;
    const int last = (int)(pixels.minor + pixels.minors - 1) / w->gw;
    XG_(stage) stage;
    stage.phases_y = stage.phases_x = 1;
    stage.top = first * w->stride + w->ty.first;
    stage.left = w->tx.first;
    stage.rows = (last - first) * w->stride + (w->ty.count - 1) * w->ty.delta + 1;
    stage.width = (w->gw - 1) * w->stride + (w->tx.count - 1) * w->tx.delta + 1;
    stage.image = (size_t)stage.rows * (size_t)stage.width;
    stage.phase = stage.image * pixels.majors;
    return stage;
}

/* Lists the runs of an image in such a stage; returns how many. */
static size_t XG_(across_runs)(const XG_(window) *w, const XG_(stage) *s, size_t images,
                               XG_(run) *run)
{
    const int begin = XG_(clamp)(-s->left, 0, s->width);
    const int end = XG_(clamp)(w->w - s->left, begin, s->width);
    size_t count = 0, i;
    int r;
    for (i = 0; i < images; i++) {
        for (r = 0; r < s->rows; r++) {
            const int y = s->top + r;
            if (y < 0 || y >= w->h || begin == end) continue;
            run[count].from = i * w->image + (size_t)y * (size_t)w->w + (size_t)(begin + s->left);
            run[count].to = i * s->image + (size_t)r * (size_t)s->width + (size_t)begin;
            run[count++].length = (size_t)(end - begin);
        }
    }
    return count;
}

/* Pixel x of row y of image i, both counted from the block's first, lies at origin + i * image +
 * y * row + x. The origin may be below 0, modulo 2^64: a block need not begin at a row's start. */
typedef struct XG_(map) { size_t origin, image, row; } XG_(map);

XG__INLINE XG_(map) XG_(map_of)(size_t origin, size_t image, size_t row)
{
    XG_(map) map;
    map.origin = origin;
    map.image = image;
    map.row = row;
    return map;
}

/* Pixels counted one after the other. */
XG__INLINE XG_(map) XG_(counted)(const XG_(window) *w, XG_(span) pixels)
{
    const size_t gw = (size_t)w->gw;
    return XG_(map_of)((size_t)0 - pixels.minor % gw, pixels.minors, gw);
}

/* Lists the runs of pixels that are neighbours on both maps; returns how many. */
static size_t XG_(grid_runs)(const XG_(window) *w, XG_(span) pixels, XG_(map) from, XG_(map) to,
                             XG_(run) *run)
{
    const size_t gw = (size_t)w->gw;
    size_t count = 0, i, x, n, left, a, b;
    for (i = 0; i < pixels.majors; i++, from.origin += from.image, to.origin += to.image) {
        a = from.origin;
        b = to.origin;
        x = pixels.minor % gw;
        for (left = pixels.minors; left > 0; left -= n, x = 0, a += from.row, b += to.row) {
            n = xg__min(gw - x, left);
            if (count > 0 && run[count - 1].from + run[count - 1].length == a + x
                && run[count - 1].to + run[count - 1].length == b + x) {
                run[count - 1].length += n;
                continue;
            }
            run[count].from = a + x;
            run[count].to = b + x;
            run[count++].length = n;
        }
    }
    return count;
}

/* The window of a convolution. */
static XG_(window) XG_(window_of)(const xg__conv_job *job)
{
    XG_(window) w;
    w.h = job->h;
    w.w = job->w;
    w.gh = job->oh;
    w.gw = job->ow;
    w.stride = job->stride;
    w.ty.count = job->kh;
    w.tx.count = job->kw;
    w.ty.first = w.tx.first = -job->pad;
    w.ty.delta = w.tx.delta = job->dilation;
    w.image = (size_t)job->c * (size_t)job->h * (size_t)job->w;
    w.plain = job->kh == 1 && job->kw == 1 && job->stride == 1 && job->pad == 0;
    return w;
}

/* The pixels of g as they are. */
static XG_(window) XG_(window_of_g)(const xg__conv_job *job)
{
    XG_(window) w = XG_(window_of)(job);
    w.h = job->oh;
    w.w = job->ow;
    w.stride = w.ty.count = w.tx.count = 1;
    w.ty.first = w.tx.first = w.ty.delta = w.tx.delta = 0;
    w.image = (size_t)job->o * (size_t)job->oh * (size_t)job->ow;
    w.plain = true;
    return w;
}

/* An input gradient with a stride, one axis: pixels p, p + stride, ... of x meet only the taps that
 * lie a multiple of the stride away: *begin, *begin + *step, ... of the kernel. In their grid,
 * these see pixels of g that are first, first + delta, ... away. */
static XG_(taps) XG_(phase_taps)(const xg__conv_job *job, int p, int kernel, int *begin, int *step)
{
    const int s = job->stride;
    XG_(taps) taps;
    *step = XG_(period)(s, job->dilation);
    for (*begin = 0; *begin < kernel; ++*begin) {
        if ((p + job->pad - *begin * job->dilation) % s == 0) break;
    }
    taps.count = (kernel - *begin + *step - 1) / *step;
    taps.first = (p + job->pad - *begin * job->dilation) / s;
    taps.delta = -(*step * job->dilation / s);
    return taps;
}

/* 3.5.5 Planning: what the axes are, how they are cut, and what a worker needs. */

/* An operand that is a matrix: number i of rows or columns and k at i * stride + k (along_k), or
 * k * stride + i; of the next problem `step` further on. */
typedef struct XG_(matrix) {
    const xg_real *base;       /* NULL: the operand is none                                       */
    size_t step, stride;
    bool along_k;
} XG_(matrix);

typedef struct XG_(plan) {
    const xg__conv_job *conv;  /* NULL for gemm                                                   */
    const xg__team *team;
    XG_(matrix) row_matrix, col_matrix;
    xg_real *y;                /* the output, if a matrix                                         */
    size_t y_step, y_stride;   /* from one problem, one line to the next                          */
    bool add;                  /* sums are added to what the output holds                         */
    bool turned;               /* outputs are computed as their transpose: rows run along lines   */
    size_t c, o, taps;         /* of one group                                                    */
    XG_(window) window;
    bool unpacked;             /* columns are read from the stage (see better_unpacked)           */
    bool across;               /* columns are (tap, c), read from the stage (see stage_across)    */
    bool each;                 /* the same where groups are single channels: each meets its own g */
    bool folded;               /* an input gradient by shares of x (see plan_folded)              */
    size_t problems;           /* matrices, groups (times phases in y for input gradients)        */
    int phases_y, phases;      /* input gradients: in y; in x, which are one unit's; otherwise 1  */
    int py, px;                /* a phase (see set_phase), its first tap and the step to the next */
    int ky, kx, tap_step;
    XG_(cut) rows, cols, k;
    size_t part;               /* so many columns of a unit are packed at a time; 0: all          */
    xg__packed *packed;        /* all columns, packed, if they are kept (see packed_at)           */
    size_t chunks;             /* of k, for each unit                                             */
    size_t panel, sums_stride, sums_size, weights, list;                    /* in numbers, runs */
    size_t at_cols, at_sums, at_stage, at_tile, at_step, at_offset, at_run, at_phase; /* in bytes */
    size_t desk;               /* bytes for a worker                                              */
} XG_(plan);

/* Where the sums of a phase lie; base is NULL if no tap belongs to it, and they are 0. */
typedef struct XG_(phase) { const xg_real *base; XG_(map) map; } XG_(phase);

/* A worker's scratch. */
typedef struct XG_(desk) {
    xg_real *rows, *cols;      /* packed operands                                                 */
    xg_real *sums, *stage, *tile, *squares;
    size_t *step, *offset;
    XG_(run) *run;
    XG_(phase) *phase;
    size_t list;               /* how many runs there is room for                                 */
} XG_(desk);

static XG_(desk) XG_(desk_of)(const XG_(plan) *p, int worker)
{
    char *memory = (char *)p->team->scratch + (size_t)worker * p->desk;
    XG_(desk) d;
    d.rows = (xg_real *)(void *)memory;
    d.cols = (xg_real *)(void *)(memory + p->at_cols);
    d.sums = (xg_real *)(void *)(memory + p->at_sums);
    d.stage = (xg_real *)(void *)(memory + p->at_stage);
    d.tile = (xg_real *)(void *)(memory + p->at_tile);
    d.squares = d.tile + XG__ROOM;
    d.step = (size_t *)(void *)(memory + p->at_step);
    d.offset = (size_t *)(void *)(memory + p->at_offset);
    d.run = (XG_(run) *)(void *)(memory + p->at_run);
    d.phase = (XG_(phase) *)(void *)(memory + p->at_phase);
    d.list = p->list;
    return d;
}

/* Makes p the plan of one phase of an input gradient: the image is g, the grid every stride-th row
 * and pixel of x (maybe one beyond the edge: all phases have the same grid). */
static void XG_(set_phase)(XG_(plan) *p, int py, int px)
{
    const xg__conv_job *job = p->conv;
    const int s = job->stride;
    XG_(window) w = XG_(window_of_g)(job);
    p->py = py;
    p->px = px;
    w.gh = (job->h + s - 1) / s;
    w.gw = (job->w + s - 1) / s;
    w.ty = XG_(phase_taps)(job, py, job->kh, &p->ky, &p->tap_step);
    w.tx = XG_(phase_taps)(job, px, job->kw, &p->kx, &p->tap_step);
    w.plain = w.ty.count == 1 && w.tx.count == 1 && w.ty.first == 0 && w.tx.first == 0
           && w.gh == w.h && w.gw == w.w && !p->unpacked;
    p->window = w;
    p->k = XG_(axis)(p->o, (size_t)(w.ty.count * w.tx.count));
    p->k = XG_(cut_axis)(p->k, XG__BLOCK_K, 1);
}

/* The block of pixels that sees most rows: if it is a piece of a plane, it may begin anywhere in a
 * grid row. */
static XG_(span) XG_(tallest)(const XG_(window) *w, const XG_(cut) *pixels)
{
    XG_(span) block = XG_(block)(pixels, 0);
    if (pixels->pieces > 1) block.minor = (size_t)w->gw - 1;
    return block;
}

/* How much a window stages of a block of pixels. */
static size_t XG_(stage_size)(const XG_(window) *w, const XG_(cut) *pixels, size_t channels)
{
    XG_(stage) s;
    if (w->plain) return 0;
    s = XG_(stage_of)(w, XG_(tallest)(w, pixels));
    return s.phase * (size_t)s.phases_y * (size_t)s.phases_x * channels;
}

/* The next place after `count` objects of `size` bytes. */
XG__INLINE size_t XG_(after)(size_t at, size_t count, size_t size)
{
    return at + XG_(round_up)(count * size, 64);
}

/* How many rows of an input gradient's weights are transposed at a time. */
XG__INLINE size_t XG_(strip)(const XG_(plan) *p) { return XG_(ceil_div)(XG__STRIP, p->taps); }

/* Lays out a desk that is large enough for every phase. */
static void XG_(plan_desk)(XG_(plan) *p)
{
    const bool dx = p->conv != NULL && p->conv->kind == XG__CONV_DX;
    const bool dw = p->conv != NULL && p->conv->kind == XG__CONV_DW;
    const bool in_place = p->weights > 0 || p->row_matrix.base != NULL;
    const size_t rows = XG_(longest)(&p->rows), cols = XG_(longest)(&p->cols);
    const size_t panels = (p->part > 0 ? p->part : cols) / XG__NR + 1, room = sizeof(xg_real);
    const size_t slices = p->each ? panels * XG__NR : XG_(round_up)(rows, XG__MR);
    size_t k = 0, stage = 0, width = cols, list = xg__max(rows, cols + panels);
    int i;
    for (i = 0; i < p->phases_y * p->phases; i++) {
        if (dx && !p->folded) XG_(set_phase)(p, i / p->phases, i % p->phases);
        k = xg__max(k, XG_(longest)(&p->k));
        if (p->folded) {
            stage = cols * p->rows.minor;
        } else if (p->across) {
            const XG_(stage) s = XG_(stage_across)(&p->window, XG_(tallest)(&p->window, &p->k));
            p->panel = s.phase * XG__NR;
            stage = panels * p->panel;
            width = p->taps * XG_(round_up)(cols, XG__NR);
            list = xg__max(list, (size_t)s.rows * p->k.group);
        } else if (dw) {
            stage = XG_(stage_size)(&p->window, &p->k, (p->turned ? p->rows : p->cols).group);
        } else if (p->conv != NULL) {
            stage = xg__max(stage, XG_(stage_size)(&p->window, &p->cols, p->k.group));
        }
        if (p->unpacked) width = xg__max(width, XG_(stage_size)(&p->window, &p->cols, 1));
    }
    if (p->weights > 0) stage = xg__max(stage, XG_(strip)(p) * p->taps * XG__STRIP_O);
    if (p->weights > 0) list = xg__max(list, p->o);
    list = xg__max(list, k) + 8;
    p->list = 4 * list;
    if (p->add && p->turned) stage = xg__max(stage, XG__LANES * XG_(round_up)(rows, XG__LANES));
    if (!p->across) p->panel = k * XG__NR + 16;      /* not all in the same sets of a cache */
    p->sums_stride = XG_(round_up)(width, XG__NR);
    p->sums_size = rows * p->sums_stride;
    p->at_cols = XG_(after)(0, in_place && !p->part ? 0 : slices * k + XG__LANES, room);
    p->at_sums = XG_(after)(p->at_cols, p->unpacked || p->across ? 0 : panels * p->panel, room);
    p->at_stage = XG_(after)(p->at_sums, p->sums_size * (size_t)p->phases, room);
    p->at_tile = XG_(after)(p->at_stage, stage + XG__NR + XG__LANES, room);
    p->at_step = XG_(after)(p->at_tile, XG__ROOM + 2 * XG__LANES * XG__LANES, room);
    p->at_offset = XG_(after)(p->at_step, list, sizeof(size_t));
    p->at_run = XG_(after)(p->at_offset, list, sizeof(size_t));
    p->at_phase = XG_(after)(p->at_run, p->list, sizeof(XG_(run)));
    p->desk = XG_(after)(p->at_phase, (size_t)p->phases, sizeof(XG_(phase)));
}

/* In how many chunks the sums of so many outputs are cut. */
static size_t XG_(chunks_for)(double outputs, size_t k_blocks)
{
    const double units = outputs / (128 * 128);
    size_t chunks = xg__min(k_blocks / 2, 8);
    while (chunks > 1 && units * (double)(chunks - 1) >= 8) chunks--;
    return xg__max(chunks, 1);
}

XG__INLINE bool XG_(pools)(const XG_(plan) *p)
{
    return p->conv != NULL && xg__finish_pools(&p->conv->finish);
}

XG__INLINE size_t XG_(units)(const XG_(plan) *p)
{
    return p->problems * p->rows.blocks * p->cols.blocks;
}

/* Cuts the axes: for the cache first, then until every worker has a few units, so that a slow one
 * does not hold up the others. But the finer the cut, the more often numbers are packed: a matrix
 * product whose rows are read as they lie is cut into columns, each of which is packed once. */
static void XG_(plan_units)(XG_(plan) *p, int workers)
{
    const double rows = (double)p->rows.major * (double)p->rows.minor;
    const size_t taps = p->across ? p->taps : 1;
    const double cols = (double)p->cols.major * (double)p->cols.minor * (double)taps;
    const double work = rows * cols * (double)p->k.major * (double)p->k.minor * (double)p->problems;
    const size_t unit = XG_(pools)(p) ? 2 * (size_t)p->window.gw : XG__NR;   /* rows of windows */
    const bool in_place = p->conv == NULL && p->row_matrix.along_k;
    const double small = p->conv != NULL ? 3e7 : 4e6;   /* two such units a worker are enough */
    size_t row_target = XG__BLOCK_ROWS;
    size_t col_target = XG__BLOCK_COLS * (p->conv != NULL ? 1 : XG__BLOCK_PARTS);
    p->k = XG_(cut_axis)(p->k, XG__BLOCK_K, 1);
    p->chunks = p->phases > 1 ? 1 : XG_(chunks_for)(rows * cols * (double)p->problems, p->k.blocks);
    if (p->unpacked) col_target = XG__BLOCK_COLS_STAGED;
    if (p->across) {
        row_target = XG__BLOCK_ROWS_ACROSS;
        col_target = p->each ? XG__NR : xg__max(XG__BLOCK_COLS_ACROSS / taps, XG__NR);
    } else {
        while (row_target < 1024 && cols * (double)row_target <= XG__BLOCK_AREA) row_target *= 2;
    }
    for (;;) {
        size_t units, r, c;
        p->rows = XG_(cut_axis)(p->rows, row_target, XG__MR);
        p->cols = XG_(cut_axis)(p->cols, col_target, unit);
        units = XG_(units)(p) * p->chunks;
        r = XG_(longest)(&p->rows);
        c = XG_(longest)(&p->cols);
        if (workers < 2 || work < 5e5 * (double)units) break;
        if (units >= (work < small * (double)units ? 2 : 4) * (size_t)workers) break;
        if (in_place && c >= 128) col_target = c / 2;
        else if (c >= 2 * unit && (c * taps > r || r < 64)) col_target = c / 2;
        else if (r >= 32 && !p->folded) row_target = r / 2;
        else break;
    }
    if (p->conv != NULL && p->conv->kind == XG__CONV_DX && !p->folded
        && (p->cols.blocks > 1 || p->phases > 1 || p->k.pieces > 1)) {
        p->weights = XG_(round_up)(p->problems / (size_t)p->phases_y * p->c * p->o * p->taps, 16);
    }
    if (p->conv == NULL) {
        const size_t c = XG_(longest)(&p->cols), parts = XG_(ceil_div)(c, XG__BLOCK_COLS);
        p->part = parts > 1 ? XG_(round_up)(XG_(ceil_div)(c, parts), XG__NR) : 0;
    }
    XG_(plan_desk)(p);
}

/* A guess in cycles, to choose which operand gives the rows: the micro-kernel, packing (columns are
 * dear where that transposes), transposing the output. */
static double XG_(cost)(double rows, double cols, double k, bool cols_along_k, bool turned)
{
    const double vectors = (double)(((size_t)cols + XG__LANES - 1) / XG__LANES);
    return 0.5 * rows * vectors * k + k * rows * 0.1 + k * cols * (cols_along_k ? 0.4 : 0.1)
         + (turned ? 0.5 * rows * cols : 0.0);
}

static void XG_(plan_gemm)(XG_(plan) *p, const xg__gemm_job *job, int workers)
{
    const XG_(matrix) a = { job->a, job->step_a, (size_t)(job->ta ? job->m : job->k), !job->ta };
    const XG_(matrix) b = { job->b, job->step_b, (size_t)(job->tb ? job->k : job->n), job->tb };
    memset(p, 0, sizeof *p);
    p->turned = XG_(cost)(job->n, job->m, job->k, a.along_k, true)
              < XG_(cost)(job->m, job->n, job->k, b.along_k, false);
    p->row_matrix = p->turned ? b : a;
    p->col_matrix = p->turned ? a : b;
    p->packed = job->packed != NULL && job->packed->data != NULL ? job->packed : NULL;
    p->y = job->c;
    p->add = job->add;
    p->y_step = job->step_c;
    p->y_stride = (size_t)job->n;
    p->phases_y = p->phases = 1;
    p->problems = (size_t)job->batch;
    p->rows = XG_(axis)(1, (size_t)(p->turned ? job->n : job->m));
    p->cols = XG_(axis)(1, (size_t)(p->turned ? job->m : job->n));
    p->k = XG_(axis)(1, (size_t)job->k);
    XG_(plan_units)(p, workers);
}

/* Columns can be read from the stage, one grid row behind the other: then the padding between them
 * is computed too, in vain, and dropped in the end, but packing is spared, which few rows do not
 * repay (measured: up to about twenty). */
static bool XG_(better_unpacked)(const XG_(plan) *p)
{
    const XG_(window) *w = &p->window;
    const XG_(span) pixel = { 0, 1, 0, 1 };
    size_t width;
    if (w->plain || w->ty.count < 1 || w->tx.count < 1) return false;
    width = (size_t)XG_(stage_of)(w, pixel).width;
    return p->rows.minor * width <= 20 * (size_t)w->gw;
}

/* The weights of all groups, as they lie: o by (c, tap). */
static XG_(matrix) XG_(weights)(const XG_(plan) *p, bool along_k)
{
    const size_t stride = p->c * p->taps;
    const XG_(matrix) m = { p->conv->pw, p->o * stride, stride, along_k };
    return m;
}

/* Weights must be transposed for an input gradient, which few pixels do not repay (measured: less
 * than an eighth of the planes). These take weights as they lie: rows are pixels of g, columns
 * (c, tap), and a sum over o is the share of x that a pixel of g has through a tap. Shares are
 * added up in the end, tap by tap. */
static bool XG_(plan_folded)(XG_(plan) *p, const xg__conv_job *job)
{
    const double pixels = (double)job->n * job->oh * job->ow;
    p->folded = 8 * pixels <= (double)p->o && pixels <= XG__BLOCK_ROWS;
    if (!p->folded) return false;
    p->window = XG_(window_of_g)(job);
    p->col_matrix = XG_(weights)(p, false);
    p->rows = XG_(axis)((size_t)job->n, (size_t)(job->oh * job->ow));
    p->cols = XG_(axis)(p->c, p->taps);
    p->k = XG_(axis)(1, p->o);
    return true;
}

/* An input gradient. Columns are packed in all phases or none; the one with most taps decides.
 * Where a stride is longer than x, phases beyond the edge are left out; but two stay in x, as one
 * would mean that there are none. */
static void XG_(plan_dx)(XG_(plan) *p)
{
    const xg__conv_job *job = p->conv;
    size_t most = 0;
    int i, best = 0;
    p->phases_y = job->stride < job->h ? job->stride : job->h;
    p->phases = XG_(clamp)(job->stride, 1, job->w > 1 ? job->w : 2);
    p->problems *= (size_t)p->phases_y;
    p->rows = XG_(axis)(1, p->c);
    for (i = 0; i < p->phases_y * p->phases; i++) {
        XG_(set_phase)(p, i / p->phases, i % p->phases);
        if (p->k.minor <= most) continue;
        most = p->k.minor;
        best = i;
    }
    XG_(set_phase)(p, best / p->phases, best % p->phases);
    p->cols = XG_(axis)((size_t)job->n, (size_t)(p->window.gh * p->window.gw));
    p->unpacked = XG_(better_unpacked)(p);
}

/* A weight gradient. */
static void XG_(plan_dw)(XG_(plan) *p, const xg__conv_job *job)
{
    const XG_(cut) o = XG_(axis)(1, p->o), taps = XG_(axis)(p->c, p->taps);
    const double outputs = (double)p->o, inputs = (double)p->c * (double)p->taps;
    const double k = (double)p->k.major * (double)p->k.minor;
    p->y = job->y;
    p->add = job->add;
    p->y_stride = p->c * p->taps;
    p->y_step = p->o * p->y_stride;
    p->each = p->taps > 1 && p->c == 1 && p->o == 1 && job->groups > 1;
    p->across = p->each || (p->taps > 1 && p->c >= XG__LANES && k > outputs);
    p->turned = !p->across && XG_(cost)(inputs, outputs, k, true, true)
                            < XG_(cost)(outputs, inputs, k, true, false);
    if (p->each) {             /* all groups are columns */
        p->c = p->o = p->problems;
        p->problems = 1;
    }
    p->rows = p->turned ? taps : o;
    p->cols = p->turned ? o : p->across ? XG_(axis)(1, p->c) : taps;
}

static void XG_(plan_conv)(XG_(plan) *p, const xg__conv_job *job, int workers)
{
    const XG_(cut) pixels = XG_(axis)((size_t)job->n, (size_t)(job->oh * job->ow));
    memset(p, 0, sizeof *p);
    p->conv = job;
    p->c = (size_t)(job->c / job->groups);
    p->o = (size_t)(job->o / job->groups);
    p->taps = (size_t)(job->kh * job->kw);
    p->phases_y = p->phases = 1;
    p->problems = (size_t)job->groups;
    p->window = XG_(window_of)(job);
    if (job->kind == XG__CONV_DX) {
        if (!XG_(plan_folded)(p, job)) XG_(plan_dx)(p);
    } else if (job->kind == XG__CONV) {
        p->row_matrix = XG_(weights)(p, true);
        p->rows = XG_(axis)(1, p->o);
        p->cols = pixels;
        p->k = XG_(axis)(p->c, p->taps);
        p->unpacked = XG_(better_unpacked)(p);
    } else {
        p->k = pixels;
        XG_(plan_dw)(p, job);
    }
    XG_(plan_units)(p, workers);
}

/* 3.5.6 Where operands lie. */

/* Of a matrix, the n rows or columns from i on by the n_k numbers of k from k on. */
static XG_(source) XG_(matrix_source)(const XG_(matrix) *m, size_t problem, size_t i, size_t n,
                                      size_t k, size_t n_k, const XG_(desk) *d)
{
    XG_(source) s;
    size_t j;
    s.base = m->base + problem * m->step + (m->along_k ? i * m->stride + k : k * m->stride + i);
    s.stride = m->stride;
    s.along_k = m->along_k;
    s.loose = false;
    s.offset = d->offset;
    s.offsets = m->along_k ? n : n_k;
    for (j = 0; j < s.offsets; j++) d->offset[j] = j * m->stride;
    s.run = d->run;
    s.runs = 1;
    s.run[0].from = s.run[0].to = 0;
    s.run[0].length = m->along_k ? n_k : n;
    return s;
}

/* Some (channels, taps) by some (images, pixels) of a window over x, staged if need be. Runs are of
 * pixels. */
static XG_(source) XG_(window_source)(const XG_(window) *w, const xg_real *x, XG_(span) taps,
                                      XG_(span) pixels, bool along_k, bool taps_first,
                                      const XG_(desk) *d)
{
    const size_t area = (size_t)w->h * (size_t)w->w;
    const XG_(map) to = XG_(counted)(w, pixels);
    XG_(map) from = to;
    XG_(source) s;
    size_t c;
    x += taps.major * area + pixels.major * w->image;
    s.along_k = along_k;
    s.loose = !w->plain;
    s.stride = w->plain ? area : 0;
    s.base = w->plain ? x + pixels.minor : d->stage;
    s.offset = d->offset;
    s.offsets = XG_(length)(taps);
    s.run = d->run;
    if (w->plain) {
        for (c = 0; c < taps.majors; c++) d->offset[c] = c * area;
        from.image = w->image;
    } else {
        const XG_(stage) stage = XG_(stage_of)(w, pixels);
        XG_(stage_fill)(w, &stage, x, taps.majors, pixels.majors, d->stage);
        XG_(stage_offsets)(w, &stage, taps, (int)pixels.minor / w->gw, taps_first, d->offset);
        from = XG_(map_of)(0, stage.image, (size_t)stage.width);
    }
    s.runs = XG_(grid_runs)(w, pixels, from, to, s.run);
    return s;
}

/* What the window sees of a group: x, or for an input gradient g. */
XG__INLINE const xg_real *XG_(seen)(const XG_(plan) *p, size_t group)
{
    const size_t area = (size_t)p->window.h * (size_t)p->window.w;
    if (p->conv->kind == XG__CONV_DX) return p->conv->pg + group * p->o * area;
    return p->conv->px + group * p->c * area;
}

/* Channels and taps of it. */
static XG_(source) XG_(seen_source)(const XG_(plan) *p, size_t group, XG_(span) taps,
                                    XG_(span) pixels, bool along_k, const XG_(desk) *d)
{
    const bool dx = p->conv->kind == XG__CONV_DX;
    return XG_(window_source)(&p->window, XG_(seen)(p, group), taps, pixels, along_k, dx, d);
}

/* Some channels of g. */
static XG_(source) XG_(g_source)(const XG_(plan) *p, size_t group, XG_(span) o, XG_(span) pixels,
                                 bool along_k, const XG_(desk) *d)
{
    const XG_(window) w = XG_(window_of_g)(p->conv);
    const xg_real *g = p->conv->pg + group * p->o * (size_t)w.h * (size_t)w.w;
    const XG_(span) channels = { o.minor, o.minors, 0, 1 };
    return XG_(window_source)(&w, g, channels, pixels, along_k, false, d);
}

/* Fills the stage of a weight gradient with channels, and the list of where its pixels lie. */
static void XG_(fill_across)(const XG_(plan) *p, size_t group, XG_(span) channels, XG_(span) pixels,
                             const XG_(desk) *d)
{
    const XG_(window) *w = &p->window;
    const XG_(stage) stage = XG_(stage_across)(w, pixels);
    const size_t area = (size_t)w->h * (size_t)w->w, gw = (size_t)w->gw, stride = (size_t)w->stride;
    const size_t panels = XG_(ceil_div)(channels.minors, XG__NR);
    const bool margin = stage.top < 0 || stage.left < 0 || stage.top + stage.rows > w->h
                     || stage.left + stage.width > w->w;
    const xg_real *first = p->conv->px + pixels.major * w->image + group * p->c * area;
    const XG_(matrix) m = { first, 0, area, true };
    XG_(source) s = XG_(matrix_source)(&m, 0, channels.minor, channels.minors, 0, 0, d);
    size_t *step = d->step, i, t;
    s.runs = XG_(across_runs)(w, &stage, pixels.majors, s.run);
    for (i = 0; margin && i < panels; i++) {
        memset(d->stage + i * p->panel, 0, stage.phase * XG__NR * sizeof(xg_real));
    }
    XG_(turn)(&s, d->stage, XG__NR, p->panel, d->squares);
    for (i = 0; i < pixels.majors; i++) {
        for (t = pixels.minor; t < pixels.minor + pixels.minors; t++) {
            const size_t y = t / gw - pixels.minor / gw, x = t % gw;
            const size_t line = i * (size_t)stage.rows + y * stride;
            *step++ = (line * (size_t)stage.width + x * stride) * XG__NR;
        }
    }
}

static XG_(source) XG_(rows_source)(const XG_(plan) *p, size_t problem, XG_(span) rows, XG_(span) k,
                                    const XG_(desk) *d)
{
    if (p->row_matrix.base != NULL) {
        return XG_(matrix_source)(&p->row_matrix, problem, rows.minor, rows.minors,
                                  XG_(start)(&p->k, k), XG_(length)(k), d);
    }
    if (p->turned) return XG_(seen_source)(p, problem, rows, k, true, d);
    if (p->folded) return XG_(g_source)(p, problem, k, rows, false, d);
    return XG_(g_source)(p, problem, rows, k, true, d);
}

static XG_(source) XG_(cols_source)(const XG_(plan) *p, size_t problem, XG_(span) cols, XG_(span) k,
                                    const XG_(desk) *d)
{
    if (p->col_matrix.base != NULL) {
        return XG_(matrix_source)(&p->col_matrix, problem, XG_(start)(&p->cols, cols),
                                  XG_(length)(cols), k.minor, k.minors, d);
    }
    if (p->conv->kind != XG__CONV_DW) return XG_(seen_source)(p, problem, k, cols, false, d);
    if (p->turned) return XG_(g_source)(p, problem, cols, k, true, d);
    return XG_(seen_source)(p, problem, cols, k, true, d);
}

/* What all units share lies behind the desks: an input gradient's weights in the order its rows
 * want, then the sums of chunks, one block of them after the other. */
XG__INLINE xg_real *XG_(shared)(const XG_(plan) *p)
{
    char *memory = (char *)p->team->scratch + (size_t)p->team->workers * p->desk;
    return (xg_real *)(void *)memory;
}

XG__INLINE xg_real *XG_(chunk)(const XG_(plan) *p, size_t i)
{
    return XG_(shared)(p) + p->weights + i * p->sums_size;
}

/* The rows of an input gradient are c; in a k block, the order is tap, then o. Shared weights lie
 * by group, phase, k block, row. This is where the block k of a phase begins. */
static xg_real *XG_(weights_at)(const XG_(plan) *p, size_t group, XG_(span) k)
{
    const xg__conv_job *job = p->conv;
    int taps = 0, i, begin, step;
    for (i = 0; i < p->py; i++) {
        taps += XG_(phase_taps)(job, i, job->kh, &begin, &step).count * job->kw;
    }
    for (i = 0; i < p->px; i++) {
        taps += XG_(phase_taps)(job, i, job->kw, &begin, &step).count * p->window.ty.count;
    }
    return XG_(shared)(p) + p->c * (p->o * (group * p->taps + (size_t)taps)
                                    + XG_(start)(&p->k, k));
}

/* Transposes weights from o by (c, tap) to (c, tap) by o: the rows of a phase that has all taps. */
static void XG_(turn_weights)(const XG_(plan) *p, size_t group, size_t row, size_t rows, size_t o,
                              size_t n, xg_real *to, const XG_(desk) *d)
{
    const XG_(matrix) m = XG_(weights)(p, false);
    const XG_(source) s = XG_(matrix_source)(&m, group, row * p->taps, rows * p->taps, o, n, d);
    XG_(turn)(&s, to, n, 0, d->squares);
}

/* Copies the taps of a phase, a run of `length` numbers of o each, from a transposed piece. */
static void XG_(pick_weights)(const XG_(plan) *p, XG_(span) k, size_t rows, const xg_real *from,
                              size_t pitch, size_t length, xg_real *to)
{
    size_t c, t;
    for (c = 0; c < rows; c++) {
        for (t = k.minor; t < k.minor + k.minors; t++, to += k.majors) {
            const int y = p->ky + (int)t / p->window.tx.count * p->tap_step;
            const int x = p->kx + (int)t % p->window.tx.count * p->tap_step;
            const size_t line = c * p->taps + (size_t)(y * p->conv->kw + x);
            XG_(put_run)(from + line * pitch, to, length, false);
        }
    }
}

XG__INLINE size_t XG_(units_of_weights)(const XG_(plan) *p)
{
    return (size_t)p->conv->groups * XG_(ceil_div)(p->c, XG_(strip)(p))
         * XG_(ceil_div)(p->o, XG__STRIP_O);
}

/* Prepares a piece, some rows by some o: all taps are transposed, then each phase picks its own. */
static void XG_(unit_of_weights)(const void *plan, size_t number, int worker)
{
    const XG_(plan) *p = (const XG_(plan) *)plan;
    const size_t strip = XG_(strip)(p), strips = XG_(ceil_div)(p->c, strip);
    const size_t pieces = XG_(ceil_div)(p->o, XG__STRIP_O);
    const size_t group = number / pieces / strips, row = number / pieces % strips * strip;
    const size_t rows = xg__min(p->c - row, strip);
    const size_t o = number % pieces * XG__STRIP_O, n = xg__min(p->o - o, XG__STRIP_O);
    const XG_(desk) d = XG_(desk_of)(p, worker);
    XG_(plan) q = *p;
    xg_real *line;
    size_t b;
    int i;
    XG_(turn_weights)(p, group, row, rows, o, n, d.stage, &d);
    for (i = 0; i < p->phases_y * p->phases; i++) {
        XG_(set_phase)(&q, i / p->phases, i % p->phases);
        for (b = 0; b < q.k.blocks; b++) {
            const XG_(span) k = XG_(block)(&q.k, b);
            const size_t from = xg__max(k.major, o), to = xg__min(k.major + k.majors, o + n);
            if (from >= to) continue;
            line = XG_(weights_at)(&q, group, k) + row * XG_(length)(k) + (from - k.major);
            XG_(pick_weights)(&q, k, rows, d.stage + (from - o), n, to - from, line);
        }
    }
}

/* 3.5.7 Where outputs go. Column e of a run goes, for row r, to base[r * row_step + (run.to + e) *
 *       step]; in the block of sums it lies at run.from + e. */
typedef struct XG_(sink) {
    xg_real *base;
    size_t row_step, step;
    XG_(run) *run;
    size_t runs;
    size_t channel;            /* of images: row 0's                                              */
    bool finish;               /* sums are finished on their way, or in place                     */
} XG_(sink);

/* How pixels of a unit lie in its sums, which may be columns of the stage. */
static XG_(map) XG_(sums_map)(const XG_(plan) *p, XG_(span) cols)
{
    XG_(stage) s;
    if (!p->unpacked) return XG_(counted)(&p->window, cols);
    s = XG_(stage_of)(&p->window, cols);
    return XG_(map_of)(0, s.image, (size_t)s.width);
}

static XG_(sink) XG_(sink_of)(const XG_(plan) *p, size_t problem, XG_(span) rows, XG_(span) cols,
                              const XG_(desk) *d)
{
    XG_(sink) s;
    s.run = d->run;
    s.runs = 1;
    s.channel = 0;
    s.finish = p->conv != NULL && p->conv->finish.any;
    if (p->folded) {           /* planes of x */
        s.step = (size_t)p->conv->h * (size_t)p->conv->w;
        s.row_step = (size_t)p->conv->c * s.step;
        s.base = p->conv->y + (problem * p->c + cols.major) * s.step;
        s.run[0].length = XG_(length)(cols);
    } else if (p->y != NULL) { /* a matrix */
        s.row_step = p->turned ? 1 : p->y_stride;
        s.step = p->turned ? p->y_stride : 1;
        s.base = p->y + problem * p->y_step + XG_(start)(&p->rows, rows) * s.row_step
               + XG_(start)(&p->cols, cols) * s.step * (p->across ? p->taps : 1);
        s.run[0].from = s.run[0].to = 0;
        s.run[0].length = XG_(length)(cols);
    } else {                   /* images */
        const bool dx = p->conv->kind == XG__CONV_DX;
        const size_t channels = dx ? (size_t)p->conv->c : (size_t)p->conv->o;
        const size_t channel = problem * (dx ? p->c : p->o) + rows.minor;
        const size_t gw = (size_t)p->window.gw, area = (size_t)p->window.gh * gw;
        s.channel = channel;
        s.row_step = area;
        s.step = 1;
        s.base = p->conv->y + (cols.major * channels + channel) * area + cols.minor / gw * gw;
        s.runs = XG_(grid_runs)(&p->window, cols, XG_(sums_map)(p, cols),
                                XG_(map_of)(0, channels * area, gw), s.run);
    }
    return s;
}

/* Brings sums to their place, from (tap, c) to (c, tap). */
static void XG_(deliver_taps)(const XG_(plan) *p, const XG_(sink) *s, size_t rows, const xg_real *c)
{
    const size_t taps = p->taps, pitch = p->sums_stride / taps;
    size_t i, e, t;
    for (i = 0; i < rows; i++, c += p->sums_stride) {
        xg_real *to = s->base + i * s->row_step;
        for (t = 0; t < taps; t++) {
            for (e = 0; e < s->run[0].length; e++) {
                const xg_real sum = c[t * pitch + e];
                to[e * taps + t] = p->add ? to[e * taps + t] + sum : sum;
            }
        }
    }
}

/* Turns a block of sums round: to[e * pitch + i] = c[i][e], e < length, i < rows. */
static void XG_(turn_sums)(const XG_(plan) *p, const xg_real *c, size_t rows, size_t length,
                           xg_real *to, size_t pitch, const XG_(desk) *d)
{
    const XG_(matrix) m = { c, 0, p->sums_stride, true };
    const XG_(source) sums = XG_(matrix_source)(&m, 0, 0, rows, 0, length, d);
    XG_(turn)(&sums, to, pitch, 0, d->squares);
}

/* The same, added to what is there: by way of a strip of the stage. */
static void XG_(add_turned)(const XG_(plan) *p, const xg_real *c, size_t rows, size_t length,
                            xg_real *to, size_t pitch, const XG_(desk) *d)
{
    const size_t line = XG_(round_up)(rows, XG__LANES);
    size_t e, i;
    for (e = 0; e < length; e += XG__LANES) {
        const size_t lines = xg__min(XG__LANES, length - e);
        XG_(turn_sums)(p, c + e, rows, lines, d->stage, line, d);
        for (i = 0; i < lines; i++) {
            XG_(put_run)(d->stage + i * line, to + (e + i) * pitch, rows, true);
        }
    }
}

/* Adds the shares that all pixels of g have in a plane of x through tap (i, j). */
static void XG_(fold_tap)(const xg__conv_job *job, int i, int j, const xg_real *from, xg_real *x)
{
    const int s = job->stride, left = j * job->dilation - job->pad;
    int gy, gx, y = i * job->dilation - job->pad, first = 0, end = job->ow;
    xg_real *to;
    while (first < end && first * s + left < 0) first++;
    while (first < end && (end - 1) * s + left >= job->w) end--;
    for (gy = 0; gy < job->oh; gy++, y += s, from += job->ow) {
        if (y < 0 || y >= job->h || first == end) continue;
        to = x + (y * job->w + left + first * s);
        if (s == 1) XG_(put_run)(from + first, to, (size_t)(end - first), true);
        else for (gx = first; gx < end; gx++, to += s) *to += from[gx];
    }
}

/* Brings shares to their place, tap by tap. */
static void XG_(fold)(const XG_(plan) *p, const XG_(sink) *s, const xg_real *c, const XG_(desk) *d)
{
    const xg__conv_job *job = p->conv;
    const size_t area = s->step, pixels = p->rows.minor, columns = s->run[0].length;
    const bool plain = p->taps == 1 && pixels == area && job->pad == 0;
    size_t n, e;
    for (n = 0; n < p->rows.major; n++, c += pixels * p->sums_stride) {
        xg_real *x = s->base + n * s->row_step;
        const xg_real *share = d->stage;
        XG_(turn_sums)(p, c, pixels, columns, plain ? x : d->stage, pixels, d);
        if (plain) continue;
        memset(x, 0, columns / p->taps * area * sizeof *x);
        for (e = 0; e < columns; e++, share += pixels) {
            const int tap = (int)(e % p->taps);
            XG_(fold_tap)(job, tap / job->kw, tap % job->kw, share, x + e / p->taps * area);
        }
    }
}

/* As the ending says. */
XG__INLINE XG_(channel) XG_(channel_of)(const xg__finish *f, size_t number)
{
    XG_(channel) c;
    c.scale = XG_(set1)(f->scale != NULL ? f->scale[number] : 1);
    c.shift = XG_(set1)(f->shift != NULL ? f->shift[number] : (xg_real)-0.0);
    c.relu = f->relu && f->more == NULL;
    return c;
}

/* Finishes n sums of a channel, which belong at `to`. */
static void XG_(finish_run)(const xg__conv_job *job, size_t channel, const xg_real *from,
                            xg_real *to, size_t n)
{
    const xg__finish *f = &job->finish;
    const XG_(channel) c = XG_(channel_of)(f, channel);
    const xg_real *more = f->more != NULL ? f->more + (to - job->y) : NULL;
    size_t i;
    for (i = 0; i < n; i += XG__LANES) {
        const size_t left = n - i;
        const bool whole = left >= XG__LANES;
        XG_(v) x = whole ? XG_(load)(from + i) : XG_(load_part)(from + i, left);
        x = XG_(finish)(&c, x);
        if (more != NULL) {
            x = XG_(add)(x, whole ? XG_(load)(more + i) : XG_(load_part)(more + i, left));
            if (f->relu) x = XG_(relu)(x);
        }
        if (whole) XG_(store)(to + i, x);
        else XG_(store_part)(to + i, x, left);
    }
}

/* The same of all rows of a unit, whose sums begin at c. */
static void XG_(finish_rows)(const XG_(plan) *p, const XG_(sink) *s, size_t rows, const xg_real *c,
                             size_t c_stride)
{
    size_t i, r;
    for (i = 0; i < rows; i++, c += c_stride) {
        for (r = 0; r < s->runs; r++) {
            const XG_(run) *run = &s->run[r];
            XG_(finish_run)(p->conv, s->channel + i, c + run->from,
                            s->base + i * s->row_step + run->to, run->length);
        }
    }
}

/* Where a max-pool follows: the maxima of the sums of a unit, which has whole rows of windows. */
static void XG_(pool_sums)(const XG_(plan) *p, size_t problem, XG_(span) rows, XG_(span) cols,
                           const xg_real *c)
{
    const xg__finish *f = &p->conv->finish;
    const size_t w = (size_t)p->window.gw, windows = (size_t)p->window.gh / 2 * (w / 2);
    const XG_(map) map = XG_(sums_map)(p, cols);
    size_t i, n, y;
    for (i = 0; i < rows.minors; i++, c += p->sums_stride) {
        const size_t number = problem * p->o + rows.minor + i;
        const XG_(channel) channel = XG_(channel_of)(f, number);
        for (n = 0; n < cols.majors; n++) {
            const size_t plane = (cols.major + n) * (size_t)p->conv->o + number;
            for (y = 0; y < cols.minors / w; y += 2) {
                const size_t start = cols.minor + y * w, to = plane * windows + start / 4;
                XG_(argpool_rows)(c + n * map.image + y * map.row, map.row, (int)start, (int)w,
                                  &channel, f->places != NULL ? f->places + to : NULL,
                                  f->maxima != NULL ? f->maxima + to : NULL);
            }
        }
    }
}

/* Brings sums to their place. */
static void XG_(deliver)(const XG_(plan) *p, const XG_(sink) *s, size_t rows, const xg_real *c,
                         const XG_(desk) *d)
{
    const size_t c_stride = p->sums_stride;
    size_t i, r;
    if (p->across) {
        XG_(deliver_taps)(p, s, rows, c);
        return;
    }
    if (p->folded) {
        XG_(fold)(p, s, c, d);
        return;
    }
    if (s->finish) {
        XG_(finish_rows)(p, s, rows, c, c_stride);
        return;
    }
    if (s->step != 1) {        /* transposed: row_step is 1 */
        if (p->add) XG_(add_turned)(p, c, rows, s->run[0].length, s->base, s->step, d);
        else XG_(turn_sums)(p, c, rows, s->run[0].length, s->base, s->step, d);
        return;
    }
    for (i = 0; i < rows; i++, c += c_stride) {
        for (r = 0; r < s->runs; r++) {
            const XG_(run) *run = &s->run[r];
            XG_(put_run)(c + run->from, s->base + i * s->row_step + run->to, run->length,
                          p->add);
        }
    }
}

/* Where pixel gx of a grid row lies in the sums of a phase, of which a channel's begin at c. */
XG__INLINE const xg_real *XG_(phase_at)(const XG_(phase) *phase, size_t c, size_t image, size_t row,
                                        int gx)
{
    const XG_(map) *map = &phase->map;
    return phase->base + (c + map->origin + image * map->image + row * map->row + (size_t)gx);
}

/* even[0] odd[0] even[1] odd[1] ..., n numbers. */
XG__INLINE void XG_(deliver_pairs)(const xg_real *even, const xg_real *odd, xg_real *to, size_t n)
{
    for (; n >= 2 * XG__LANES; n -= 2 * XG__LANES, to += 2 * XG__LANES) {
        const XG_(v) a = XG_(load)(even), b = XG_(load)(odd);
        XG_(store)(to, XG_(mix_low)(a, b));
        XG_(store)(to + XG__LANES, XG_(mix_high)(a, b));
        even += XG__LANES;
        odd += XG__LANES;
    }
    for (; n >= 2; n -= 2) {
        *to++ = *even++;
        *to++ = *odd++;
    }
    if (n > 0) *to = *even;
}

/* Pixels [gx, gx + n) of a grid row, of all phases in x, to a row of x. Sums begin at number c. */
static void XG_(deliver_row)(const XG_(plan) *p, const XG_(phase) *phase, size_t c, size_t image,
                             size_t row, int gx, int n, xg_real *to)
{
    const int s = p->phases, w = p->conv->w, reach = (gx + n) * s < w ? (gx + n) * s : w;
    const size_t area = (size_t)p->conv->h * (size_t)w;
    bool holes = false;
    int px, e;
    for (e = gx * s; e < reach; e += 16) XG__PREFETCH(to + e, area);
    if (s == 2 && phase[0].base != NULL && phase[1].base != NULL) {
        XG_(deliver_pairs)(XG_(phase_at)(&phase[0], c, image, row, gx),
                           XG_(phase_at)(&phase[1], c, image, row, gx), to + gx * 2,
                           (size_t)(reach - gx * 2));
        return;
    }
    for (px = 0; px < s; px++) holes = holes || phase[px].base == NULL;
    if (holes) memset(to + gx * s, 0, (size_t)(reach - gx * s) * sizeof *to);
    for (px = 0; px < s; px++) {
        const xg_real *from = phase[px].base;
        if (from == NULL) continue;
        from = XG_(phase_at)(&phase[px], c, image, row, gx);
        for (e = gx * s + px; e < reach; e += s) to[e] = *from++;
    }
}

/* The sums of an input gradient with a stride: to rows py, py + stride, ... of x. */
static void XG_(deliver_phases)(const XG_(plan) *p, const XG_(phase) *phase, size_t channel, int py,
                                XG_(span) rows, XG_(span) cols)
{
    const xg__conv_job *job = p->conv;
    const int gw = p->window.gw, first = (int)cols.minor / gw;
    size_t r, i;
    int x, gy, left, n;
    for (r = 0; r < rows.minors; r++) {
        for (i = 0; i < cols.majors; i++) {
            const size_t plane = (cols.major + i) * (size_t)job->c + channel + r;
            x = (int)cols.minor % gw;
            gy = first;
            for (left = (int)cols.minors; left > 0; left -= n, x = 0, gy++) {
                const int y = gy * job->stride + py;
                n = gw - x < left ? gw - x : left;
                if (y >= job->h) break;
                XG_(deliver_row)(p, phase, r * p->sums_stride, i, (size_t)(gy - first), x, n,
                                 job->y + (plane * (size_t)job->h + (size_t)y) * (size_t)job->w);
            }
        }
    }
}

/* 3.5.8 Units. */

/* Packs the rows of a k block of a unit, and tells the product where they are. */
static void XG_(pack_rows)(const XG_(plan) *p, size_t group, XG_(span) rows, XG_(span) cols,
                           XG_(span) k, XG_(product) *product, const XG_(desk) *d)
{
    XG_(source) s;
    product->k = XG_(length)(k);
    product->a = d->rows;
    product->a_stride = product->k;
    product->a_turned = false;
    product->scattered = p->across || p->unpacked;
    if (p->each) {             /* a panel of g, as the stage's are */
        s = XG_(g_source)(p, group, cols, k, true, d);
        XG_(turn)(&s, d->rows, XG__NR, product->k * XG__NR, d->squares);
    } else if (p->weights > 0) {
        product->a = XG_(weights_at)(p, group, k) + rows.minor * product->k;
    } else if (p->conv != NULL && p->conv->kind == XG__CONV_DX && !p->folded) {
        XG_(turn_weights)(p, group, rows.minor, rows.minors, k.major, k.majors, d->rows, d);
    } else {
        s = XG_(rows_source)(p, group, rows, k, d);
        if (!s.along_k && p->row_matrix.base == NULL) {
            XG_(turn)(&s, d->rows, product->k, 0, d->squares);
        } else if (s.stride && s.runs == 1) {      /* as slices can be cut from them */
            product->a = s.base + s.run[0].from;
            product->a_stride = s.stride;
            product->a_turned = !s.along_k;
        } else {
            XG_(cut_runs)(&s, 0, d->list);
            XG_(copy)(&s, d->rows, product->k);
        }
    }
}

/* Columns as panels, from `to` on. */
static void XG_(pack_panels)(const XG_(plan) *p, XG_(source) *s, xg_real *to, const XG_(desk) *d)
{
    if (s->along_k) {
        XG_(turn)(s, to, XG__NR, p->panel, d->squares);
    } else {
        XG_(cut_runs)(s, p->panel, d->list);
        XG_(copy)(s, to, XG__NR);
    }
}

/* Where the panels of some columns are kept: those of a k block lie together. That depends on the
 * shapes of the operand alone, not on how a product is cut for its workers. */
static xg_real *XG_(packed_at)(const XG_(plan) *p, XG_(span) cols, XG_(span) k)
{
    const size_t panels = XG_(ceil_div)(p->cols.minor, XG__NR);
    return p->packed->data + (k.minor / p->k.piece * panels + cols.minor / XG__NR) * p->panel;
}

/* Packs a block of columns, to be kept. */
static void XG_(unit_of_packed)(const void *plan, size_t number, int worker)
{
    const XG_(plan) *p = (const XG_(plan) *)plan;
    const XG_(span) cols = XG_(block)(&p->cols, number % p->cols.blocks);
    const XG_(span) k = XG_(block)(&p->k, number / p->cols.blocks);
    const XG_(desk) d = XG_(desk_of)(p, worker);
    XG_(source) s = XG_(cols_source)(p, 0, cols, k, &d);
    XG_(pack_panels)(p, &s, XG_(packed_at)(p, cols, k), &d);
}

/* Packs columns of a unit, all or a part of them, in the same way. */
static void XG_(pack_columns)(const XG_(plan) *p, size_t group, XG_(span) cols, XG_(span) k,
                              XG_(product) *product, const XG_(desk) *d)
{
    XG_(source) s;
    size_t t;
    product->b = d->cols;
    product->panel = p->panel;
    product->step = d->step;
    if (p->across) {
        XG_(fill_across)(p, group, cols, k, d);
        return;
    }
    if (p->packed != NULL) {
        product->b = XG_(packed_at)(p, cols, k);
    } else {
        s = XG_(cols_source)(p, group, cols, k, d);
        if (p->unpacked) {
            product->b = d->stage;
            product->panel = XG__NR;
            product->step = d->offset;
            return;
        }
        XG_(pack_panels)(p, &s, d->cols, d);
    }
    for (t = 0; t < product->k; t++) d->step[t] = t * XG__NR;
}

typedef struct XG_(spot) { size_t problem, column; XG_(span) rows, cols; } XG_(spot);

static XG_(spot) XG_(spot_of)(const XG_(plan) *p, size_t unit)
{
    const size_t blocks = p->rows.blocks * p->cols.blocks;
    XG_(spot) spot;
    spot.problem = unit / blocks;
    spot.rows = XG_(block)(&p->rows, unit % blocks / p->cols.blocks);
    spot.column = unit % p->cols.blocks;
    spot.cols = XG_(block)(&p->cols, spot.column);
    return spot;
}

/* A panel of single channels: c[j] (+)= the sum of g's numbers of channel j, by what they see. */
static void XG_(multiply_each)(const XG_(product) *p)
{
    const xg_real *g = p->a;
    XG_(v) sum[XG__NV];
    size_t t;
    int j;
    XG__UNROLL
    for (j = 0; j < XG__NV; j++) sum[j] = XG_(set1)(0);
    for (t = 0; t < p->k; t++, g += XG__NR) {
        const xg_real *x = p->b + p->step[t];
        XG__UNROLL
        for (j = 0; j < XG__NV; j++) {
            const int at = j * XG__LANES;
            sum[j] = XG_(fma)(XG_(load)(g + at), XG_(load)(x + at), sum[j]);
        }
    }
    XG__UNROLL
    for (j = 0; j < XG__NV; j++) {
        xg_real *to = p->c + j * XG__LANES;
        XG_(store)(to, p->first ? sum[j] : XG_(add)(XG_(load)(to), sum[j]));
    }
}

/* A block whose columns are (tap, c): every tap sees the same stage, a little further on. */
static void XG_(multiply_taps)(const XG_(plan) *p, XG_(product) *product, XG_(span) pixels,
                               const XG_(desk) *d)
{
    const XG_(window) *w = &p->window;
    const XG_(stage) stage = XG_(stage_across)(w, pixels);
    xg_real *c = product->c;
    size_t t;
    for (t = 0; t < p->taps; t++) {
        const size_t y = t / (size_t)w->tx.count * (size_t)w->ty.delta;
        const size_t x = t % (size_t)w->tx.count * (size_t)w->tx.delta;
        product->b = d->stage + (y * (size_t)stage.width + x) * XG__NR;
        product->c = c + t * (p->sums_stride / p->taps);
        if (p->each) XG_(multiply_each)(product);
        else XG_(multiply)(product, d->tile);
    }
    product->c = c;
}

/* The columns of a unit that are packed together, if `from` are done. */
static XG_(span) XG_(part)(const XG_(plan) *p, XG_(span) cols, size_t from)
{
    if (p->part == 0) return cols;
    cols.minor += from;
    cols.minors = xg__min(cols.minors - from, p->part);
    return cols;
}

/* Some channels, from `channel` on, of the pixels of some images: pieces of planes or, of each
 * image, whole planes one behind the other. */
static void XG_(foresee_planes)(const XG_(plan) *p, size_t group, XG_(span) channels,
                                XG_(span) pixels, size_t channel, XG_(soon) *soon)
{
    const size_t area = (size_t)p->window.h * (size_t)p->window.w;
    const bool of_g = p->turned;           /* a weight gradient's columns, if they are not x */
    const size_t image = of_g ? (size_t)p->conv->o * area : p->window.image;
    const bool whole = pixels.minors == area;
    soon->base = (of_g ? p->conv->pg + group * p->o * area : XG_(seen)(p, group))
               + pixels.major * image + channel * area + pixels.minor;
    soon->rows = whole ? pixels.majors : XG_(length)(channels);
    soon->stride = whole ? image : area;
    soon->length = whole ? XG_(length)(channels) * area : pixels.minors;
}

/* Foresees which columns follow those of a unit from number `from` on, in k block i: the next part,
 * the next k block or the next unit's. Only where they are packed as they lie. */
static XG_(soon) XG_(foresee)(const XG_(plan) *p, const XG_(spot) *spot, size_t group, size_t from,
                              size_t i, size_t begin, size_t end)
{
    const XG_(window) *w = &p->window;
    const XG_(matrix) *m = p->col_matrix.base != NULL ? &p->col_matrix : NULL;
    XG_(span) cols = spot->cols, k;
    XG_(soon) soon;
    memset(&soon, 0, sizeof soon);
    if (!m && !w->plain) return soon;
    if (p->conv == NULL && XG_(length)(spot->rows) < 64) return soon;   /* no time to fetch it in */
    if (from == XG_(length)(cols)) {
        from = 0;
        if (++i == end) {
            if (spot->column + 1 >= p->cols.blocks) return soon;
            cols = XG_(block)(&p->cols, spot->column + 1);
            i = begin;
        }
    }
    cols = XG_(part)(p, cols, from);
    k = XG_(block)(&p->k, i);
    if (p->packed != NULL) {
        soon.base = XG_(packed_at)(p, cols, k);
        soon.rows = 1;
        soon.length = XG_(ceil_div)(cols.minors, XG__NR) * p->panel;
    } else if (m) {
        const size_t c = XG_(start)(&p->cols, cols);
        soon.rows = XG_(length)(m->along_k ? cols : k);
        soon.length = XG_(length)(m->along_k ? k : cols);
        soon.stride = m->stride;
        soon.base = m->base + group * m->step
                  + (m->along_k ? c * m->stride + k.minor : k.minor * m->stride + c);
    } else if (p->conv->kind == XG__CONV_DW) {
        XG_(foresee_planes)(p, group, cols, k, XG_(start)(&p->cols, cols), &soon);
    } else {
        XG_(foresee_planes)(p, group, k, cols, k.major, &soon);
    }
    return soon;
}

/* After the last k block, what its sums will be added to (they lie where they belong). */
static XG_(soon) XG_(foresee_more)(const XG_(plan) *p, const XG_(product) *product)
{
    const xg_real *more = p->conv->finish.more + (product->c - p->conv->y);
    const XG_(soon) soon = { more, product->rows, product->c_stride, product->columns, 0, 0 };
    return soon;
}

/* Adds k block i of [begin, end), one part of the columns after the other. */
static void XG_(sum_block)(const XG_(plan) *p, const XG_(spot) *spot, size_t group, size_t i,
                           size_t begin, size_t end, XG_(product) *product, const XG_(desk) *d)
{
    const XG_(span) k = XG_(block)(&p->k, i);
    const size_t columns = product->columns;
    const bool more = p->conv != NULL && p->conv->finish.more != NULL && product->exact
                   && i + 1 == end;
    xg_real *c = product->c;
    size_t from = 0;
    XG_(pack_rows)(p, group, spot->rows, spot->cols, k, product, d);
    product->again = false;
    while (from < XG_(length)(spot->cols)) {
        const XG_(span) cols = XG_(part)(p, spot->cols, from);
        if (p->part > 0) product->columns = cols.minors;
        product->c = c + from;
        XG_(pack_columns)(p, group, cols, k, product, d);
        from += XG_(length)(cols);
        product->soon = more ? XG_(foresee_more)(p, product)
                             : XG_(foresee)(p, spot, group, from, i, begin, end);
        if (p->across) XG_(multiply_taps)(p, product, k, d);
        else XG_(multiply)(product, d->tile);
        product->again = product->held != NULL;
    }
    product->columns = columns;
    product->c = c;
}

/* Sums up k blocks [begin, end). */
static void XG_(sum_blocks)(const XG_(plan) *p, const XG_(spot) *spot, size_t group, size_t begin,
                            size_t end, xg_real *c, size_t c_stride, bool exact, const XG_(desk) *d)
{
    XG_(product) product;
    size_t i;
    product.rows = XG_(length)(spot->rows);
    product.columns = XG_(length)(spot->cols);
    if (p->unpacked) {         /* up to the last pixel of the last row */
        const size_t gw = (size_t)p->window.gw;
        const size_t rows = (spot->cols.minor + spot->cols.minors - 1) / gw - spot->cols.minor / gw;
        const XG_(map) map = XG_(sums_map)(p, spot->cols);
        product.columns = (spot->cols.majors - 1) * map.image + rows * map.row + gw;
    }
    product.c = c;
    product.c_stride = c_stride;
    product.exact = exact;
    product.first = !(exact && p->add);
    product.held = p->part > 0 ? d->rows : NULL;
    for (i = begin; i < end; i++, product.first = false) {
        XG_(sum_block)(p, spot, group, i, begin, end, &product, d);
    }
}

/* The sums of a unit, to their place. */
static void XG_(put_unit)(const XG_(plan) *p, const XG_(spot) *spot, const xg_real *c,
                          const XG_(desk) *d)
{
    XG_(sink) s;
    if (XG_(pools)(p)) {
        XG_(pool_sums)(p, spot->problem, spot->rows, spot->cols, c);
        return;
    }
    s = XG_(sink_of)(p, spot->problem, spot->rows, spot->cols, d);
    XG_(deliver)(p, &s, XG_(length)(spot->rows), c, d);
}

/* A unit, or a chunk of one. If a row's outputs are neighbours, sums are made where they belong. */
static void XG_(unit)(const void *plan, size_t number, int worker)
{
    const XG_(plan) *p = (const XG_(plan) *)plan;
    const size_t chunk = number % p->chunks, blocks = p->k.blocks;
    const size_t begin = chunk * blocks / p->chunks, end = (chunk + 1) * blocks / p->chunks;
    const XG_(spot) spot = XG_(spot_of)(p, number / p->chunks);
    const XG_(desk) d = XG_(desk_of)(p, worker);
    xg_real *c = p->chunks > 1 ? XG_(chunk)(p, number) : d.sums;
    XG_(sink) s;
    if (p->chunks == 1 && !p->unpacked && !p->across && !p->folded && !XG_(pools)(p)) {
        s = XG_(sink_of)(p, spot.problem, spot.rows, spot.cols, &d);
        if (s.step == 1 && s.runs == 1 && (blocks == 1 || !p->add)) {
            XG_(sum_blocks)(p, &spot, spot.problem, begin, end, s.base + s.run[0].to, s.row_step,
                            true, &d);
            if (!s.finish) return;
            s = XG_(sink_of)(p, spot.problem, spot.rows, spot.cols, &d);   /* packing used runs */
            s.run[0].from = s.run[0].to;
            XG_(finish_rows)(p, &s, XG_(length)(spot.rows), s.base, s.row_step);
            return;
        }
    }
    XG_(sum_blocks)(p, &spot, spot.problem, begin, end, c, p->sums_stride, false, &d);
    if (p->chunks == 1) XG_(put_unit)(p, &spot, c, &d);
}

/* Adds up a unit's chunks. */
static void XG_(join)(const void *plan, size_t number, int worker)
{
    const XG_(plan) *p = (const XG_(plan) *)plan;
    const XG_(spot) spot = XG_(spot_of)(p, number);
    const XG_(desk) d = XG_(desk_of)(p, worker);
    const size_t rows = XG_(length)(spot.rows);
    xg_real *sum = XG_(chunk)(p, number * p->chunks);
    size_t i;
    for (i = 1; i < p->chunks; i++) {
        XG_(put_run)(XG_(chunk)(p, number * p->chunks + i), sum, rows * p->sums_stride, true);
    }
    XG_(put_unit)(p, &spot, sum, &d);
}

/* A unit of an input gradient with a stride: some rows py, py + stride, ... of x, with all phases
 * in x. These are delivered together, while the lines that they share are in the cache. */
static void XG_(unit_of_phases)(const void *plan, size_t number, int worker)
{
    const XG_(plan) *p = (const XG_(plan) *)plan;
    const XG_(spot) spot = XG_(spot_of)(p, number);
    const size_t group = spot.problem / (size_t)p->phases_y;
    const int py = (int)(spot.problem % (size_t)p->phases_y);
    const XG_(desk) d = XG_(desk_of)(p, worker);
    XG_(plan) q = *p;
    int px;
    for (px = 0; px < p->phases; px++) {
        xg_real *c = d.sums + (size_t)px * p->sums_size;
        XG_(set_phase)(&q, py, px);
        XG_(sum_blocks)(&q, &spot, group, 0, q.k.blocks, c, p->sums_stride, false, &d);
        d.phase[px].base = q.k.blocks > 0 ? c : NULL;
        d.phase[px].map = XG_(sums_map)(&q, spot.cols);
    }
    XG_(deliver_phases)(p, d.phase, group * p->c + spot.rows.minor, py, spot.rows, spot.cols);
}

/* 3.5.9 The four of the table. */

/* What a team runs: each task is a range of units of a plan. */
typedef struct XG_(tasks) {
    const void *plan;
    size_t units, tasks;
    void (*unit)(const void *plan, size_t number, int worker);
} XG_(tasks);

static void XG_(task)(void *context, int task, int worker)
{
    const XG_(tasks) *t = (const XG_(tasks) *)context;
    const size_t end = ((size_t)task + 1) * t->units / t->tasks;
    size_t i = (size_t)task * t->units / t->tasks;
    for (; i < end; i++) t->unit(t->plan, i, worker);
}

static void XG_(run_units)(const xg__team *team, const void *plan, size_t units,
                           void (*unit)(const void *plan, size_t number, int worker))
{
    XG_(tasks) t;
    t.plan = plan;
    t.units = units;
    t.tasks = xg__min(units, team->workers > 1 ? 16 * (size_t)team->workers : 1);
    t.unit = unit;
    if (t.tasks > 0) team->parallel(team->user, (int)t.tasks, XG_(task), &t);
}

static void XG_(run_plan)(XG_(plan) *p, const xg__team *team)
{
    const size_t units = XG_(units)(p);
    p->team = team;
    if (p->weights > 0) {
        XG_(run_units)(p->team, p, XG_(units_of_weights)(p), XG_(unit_of_weights));
    }
    if (p->packed != NULL && !p->packed->made) {
        XG_(run_units)(p->team, p, p->cols.blocks * p->k.blocks, XG_(unit_of_packed));
        p->packed->made = true;
    }
    if (p->phases > 1) {
        XG_(run_units)(p->team, p, units, XG_(unit_of_phases));
        return;
    }
    XG_(run_units)(p->team, p, units * p->chunks, XG_(unit));
    if (p->chunks > 1) XG_(run_units)(p->team, p, units, XG_(join));
}

static size_t XG_(scratch)(const XG_(plan) *p, int workers)
{
    const size_t chunks = p->chunks > 1 ? XG_(units)(p) * p->chunks : 0;
    return (size_t)workers * p->desk + (p->weights + chunks * p->sums_size) * sizeof(xg_real);
}

static size_t XG_(gemm_scratch)(const xg__gemm_job *job, int workers)
{
    XG_(plan) plan;
    XG_(plan_gemm)(&plan, job, workers);
    return XG_(scratch)(&plan, workers);
}

/* Packed columns that are kept pay from 64 rows to XG__BLOCK_ROWS (measured): fewer rows wait for
 * them as long as for what they were packed from, more repay the packing. */
static size_t XG_(gemm_packed)(const xg__gemm_job *job, bool *of_a)
{
    XG_(plan) p;
    XG_(plan_gemm)(&p, job, 1);
    *of_a = p.turned;
    if (p.problems != 1 || p.rows.minor < 64 || p.rows.minor > XG__BLOCK_ROWS) return 0;
    return p.k.blocks * XG_(ceil_div)(p.cols.minor, XG__NR) * p.panel;
}

static void XG_(gemm)(const xg__gemm_job *job, const xg__team *team)
{
    XG_(plan) plan;
    XG_(plan_gemm)(&plan, job, team->workers);
    XG_(run_plan)(&plan, team);
}

static size_t XG_(direct_scratch)(const xg__conv_job *job, int workers)
{
    XG_(plan) plan;
    XG_(plan_conv)(&plan, job, workers);
    return XG_(scratch)(&plan, workers);
}

static void XG_(direct)(const xg__conv_job *job, const xg__team *team)
{
    XG_(plan) plan;
    XG_(plan_conv)(&plan, job, team->workers);
    XG_(run_plan)(&plan, team);
}

/* 3.5.10 Weight gradients behind a max-pool. One number of g in four may be other than 0, at a
 *        place that depends on the plane. So the picture is staged with channels innermost: then
 *        all channels and the taps of a row of the kernel, as a pixel sees them, are neighbours, a
 *        "line". For each plane of g, lines are summed with the weights g of its windows; where a
 *        ReLU was closed, g is 0, and the window may be left out.
 *
 * Numeric contract. Windows are summed band by band (some rows of windows), each band by a chain of
 * fma from 0; bands are added in order, pictures likewise, and then chunks of pictures. */
#define XG__CHAINS 12          /* sums that are kept in registers                                 */
#define XG__BAND   8192        /* numbers of the stage that a band sees, about: the first cache   */

typedef struct XG_(pooled) {
    const xg__conv_job *job;
    const xg__team *team;
    XG_(window) window;
    XG_(stage) stage;
    size_t ph, pw;             /* windows of a plane                                              */
    size_t band;               /* rows of windows                                                 */
    size_t pixel;              /* numbers of the stage: channels, or 4 for 3 of them              */
    size_t row, line;          /* of the stage; of sums, whole vectors                            */
    size_t sums, chunks;       /* numbers of a chunk                                              */
    size_t at_desks, at_offset, at_run, at_squares, at_from, at_weight, desk;            /* bytes */
} XG_(pooled);

static void XG_(plan_pooled)(XG_(pooled) *p, const xg__conv_job *job)
{
    const size_t c = (size_t)job->c, room = sizeof(xg_real);
    const XG_(span) pixels = { 0, 1, 0, (size_t)(job->oh * job->ow) };
    memset(p, 0, sizeof *p);
    p->job = job;
    p->window = XG_(window_of)(job);
    p->stage = XG_(stage_across)(&p->window, pixels);
    p->ph = (size_t)job->oh / 2;
    p->pw = (size_t)job->ow / 2;
    p->pixel = c == 3 ? 4 : c;
    p->row = (size_t)p->stage.width * p->pixel;
    p->band = xg__max(XG__BAND / (2 * p->row * (size_t)job->stride), 1);
    p->band = XG_(ceil_div)(p->ph, XG_(ceil_div)(p->ph, p->band));      /* none much shorter */
    p->line = XG_(round_up)((size_t)job->kw * p->pixel, 16);
    p->sums = (size_t)job->o * (size_t)job->kh * p->line;
    p->chunks = xg__min((size_t)job->n, 8);
    p->at_desks = XG_(after)(0, p->chunks * p->sums, room);
    p->at_offset = XG_(after)(0, p->stage.image * p->pixel + 4 * XG__LANES, room);
    p->at_run = XG_(after)(p->at_offset, c, sizeof(size_t));
    p->at_squares = XG_(after)(p->at_run, (size_t)p->stage.rows, sizeof(XG_(run)));
    p->at_from = XG_(after)(p->at_squares, 2 * XG__LANES * XG__LANES, room);
    p->at_weight = XG_(after)(p->at_from, p->band * p->pw + XG__LANES, room);
    p->desk = XG_(after)(p->at_weight, p->band * p->pw, room);
}

/* Three channels, to pixels of four. What a run's last vector spills, the next run overwrites. */
static void XG_(stage_fours)(const XG_(source) *s, xg_real *stage)
{
    XG_(v) channel[4];
    xg_real *to[XG__LANES];
    size_t r, e, l;
    int i;
    channel[3] = XG_(set1)(0);
    for (r = 0; r < s->runs; r++) {
        const XG_(run) *run = s->run + r;
        for (e = 0; e < run->length; e += XG__LANES) {
            const size_t n = xg__min(run->length - e, XG__LANES);
            XG__UNROLL
            for (i = 0; i < 3; i++) {
                channel[i] = XG_(load_most)(s->base + s->offset[i] + run->from + e, n);
            }
            for (l = 0; l < XG__LANES; l++) to[l] = stage + 4 * (run->to + e + l);
            XG_(store_fours)(channel, to, 0);
        }
    }
}

/* Stages a picture. */
static void XG_(stage_pooled)(const XG_(pooled) *p, size_t image, const XG_(desk) *d)
{
    const size_t area = (size_t)p->job->h * (size_t)p->job->w;
    const XG_(matrix) m = { p->job->px + image * p->window.image, 0, area, true };
    XG_(source) s = XG_(matrix_source)(&m, 0, 0, (size_t)p->job->c, 0, 0, d);
    s.runs = XG_(across_runs)(&p->window, &p->stage, 1, s.run);
    if (p->job->c == 3) XG_(stage_fours)(&s, d->stage);
    else XG_(turn)(&s, d->stage, (size_t)p->job->c, 0, d->squares);
}

/* The windows of a band of a plane of g: weights, their g, and where in the band's part of the
 * stage their first tap begins, whole numbers. */
typedef struct XG_(views) {
    const xg_real *weight;
    const int32_t *from;
    size_t count;
    const xg_real *g, *at;     /* of all windows, chosen or not                                   */
} XG_(views);

/* Whole numbers below 2^23: they are the low bits of their sum with it. */
XG__INLINE void XG_(store_whole)(int32_t *to, XG_(v) a)
{
#if XG__LANES > 1
    typedef int32_t whole __attribute__((vector_size(4 * XG__LANES)));
    const XG_(v) sum = XG_(add)(a, XG_(set1)(8388608.0f));
    whole n;
    memcpy(&n, &sum, sizeof n);
    n -= 0x4B000000;                           /* the bits of 2^23 */
    memcpy(to, &n, sizeof n);
#else
    *to = (int32_t)a;
#endif
}

/* Where some rows of windows see, from their places `at`; the first row is number `first`. Numbers
 * behind the last one are overwritten, to the end of a vector. */
static void XG_(find_views)(const XG_(pooled) *p, const xg_real *at, size_t first, size_t rows,
                            int32_t *from)
{
    const size_t ow = (size_t)p->job->ow, stride = (size_t)p->job->stride;
    const size_t step = stride * p->pixel, down = stride * p->row;
    const XG_(v) width = XG_(set1)((xg_real)ow);
    size_t r, i;
    for (r = 0; r < rows; r++, at += p->pw, from += p->pw) {
        const XG_(v) start = XG_(set1)((xg_real)(2 * (first + r) * ow));
        const XG_(v) above = XG_(set1)((xg_real)(2 * r * down));
        const XG_(v) below = XG_(set1)((xg_real)((2 * r + 1) * down) - (xg_real)(ow * step));
        for (i = 0; i < p->pw; i += XG__LANES) {
            const size_t n = xg__min(p->pw - i, XG__LANES);
            const XG_(v) place = XG_(sub)(XG_(load_most)(at + i, n), start);
            const XG_(v) line = XG_(select)(XG_(less)(place, width), above, below);
            XG_(store_whole)(from + i, XG_(fma)(place, XG_(set1)((xg_real)step), line));
        }
    }
}

/* Whether more than one in eight is 0. */
static bool XG_(many_zeros)(const xg_real *p, size_t n)
{
    const XG_(v) zero = XG_(set1)(0), one = XG_(set1)(1);
    XG_(v) count = zero;
    xg_real room[XG__LANES], zeros = 0;
    size_t i;
    for (i = 0; i < n; i += XG__LANES) {
        const XG_(v) part = XG_(load_most)(p + i, xg__min(n - i, XG__LANES));
        count = XG_(add)(count, XG_(select)(XG_(less_equal)(XG_(abs)(part), zero), one, zero));
    }
    XG_(store)(room, count);
    for (i = 0; i < XG__LANES; i++) zeros += room[i];
    zeros -= (xg_real)(XG_(round_up)(n, XG__LANES) - n);               /* behind the last one */
    return zeros * 8 > (xg_real)n;
}

/* Keeps those that count. */
static size_t XG_(choose_views)(const xg_real *all, size_t views, xg_real *weight, int32_t *from)
{
    size_t count = 0, t;
    for (t = 0; t < views; t++) {              /* without a branch: zeros come as they like */
        weight[count] = all[t];
        from[count] = from[t];
        count += all[t] != 0;
    }
    return count;
}

/* sum[i][j] += the sum over the views of weight * x[from + i * row + j]: so many lines of so many
 * vectors, constants as those of XG_(micro). */
XG__INLINE void XG_(chain)(const int lines, const int vectors, const XG_(pooled) *p,
                           const XG_(views) *views, const xg_real *x, xg_real *sum)
{
    const size_t row = p->row, line = p->line, count = views->count;
    const xg_real *weights = views->weight;
    const int32_t *from = views->from;
    const size_t plane = p->ph * p->pw;
    const xg_real *rows[3];
    XG_(v) chain[XG__CHAINS];
    size_t t;
    int i, j;
    XG__UNROLL
    for (i = 0; i < lines; i++) rows[i] = x + (size_t)i * row;
    XG__UNROLL
    for (i = 0; i < lines * vectors; i++) chain[i] = XG_(set1)(0);
    for (t = 0; t < count; t++) {
        const size_t seen = (size_t)from[t];
        const XG_(v) weight = XG_(set1)(weights[t]);
        if (t % 16 == 0) {                                             /* of the next plane */
            XG__PREFETCH(views->g + t, plane);
            XG__PREFETCH(views->at + t, plane);
        }
        XG__UNROLL
        for (i = 0; i < lines; i++) {
            XG__UNROLL
            for (j = 0; j < vectors; j++) {
                const XG_(v) v = XG_(load)(rows[i] + j * XG__LANES + seen);
                chain[i * vectors + j] = XG_(fma)(weight, v, chain[i * vectors + j]);
            }
        }
    }
    for (i = 0; i < lines; i++) {
        XG__UNROLL
        for (j = 0; j < vectors; j++) {
            xg_real *to = sum + (size_t)i * line + j * XG__LANES;
            XG_(store)(to, XG_(add)(XG_(load)(to), chain[i * vectors + j]));
        }
    }
}

/* All lines of a plane of g, as many at a time as there are registers for. */
static void XG_(chains)(const XG_(pooled) *p, const XG_(views) *views, const xg_real *x,
                        xg_real *sum)
{
    const size_t length = (size_t)p->job->kw * p->pixel, kh = (size_t)p->job->kh;
    const size_t vectors = XG_(ceil_div)(length, XG__LANES);
    const size_t lines = kh % 3 == 0 ? 3 : 1;
    const size_t pieces = XG_(ceil_div)(vectors, XG__CHAINS / lines);
    const size_t piece = XG_(ceil_div)(vectors, pieces);
    size_t i, j;
    for (i = 0; i < kh; i += lines, x += lines * p->row, sum += lines * p->line) {
        for (j = 0; j < vectors; j += piece) {
            const xg_real *from = x + j * XG__LANES;
            xg_real *to = sum + j * XG__LANES;
#define XG__CHAIN(l, v) \
    case (l) * 16 + (v): XG_(chain)(l, v, p, views, from, to); break;
            switch (lines * 16 + xg__min(vectors - j, piece)) {
            XG__CHAIN(1, 1) XG__CHAIN(1, 2) XG__CHAIN(1, 3) XG__CHAIN(1, 4) XG__CHAIN(1, 5)
            XG__CHAIN(1, 6) XG__CHAIN(1, 7) XG__CHAIN(1, 8) XG__CHAIN(1, 9) XG__CHAIN(1, 10)
            XG__CHAIN(1, 11) XG__CHAIN(1, 12)
            XG__CHAIN(3, 1) XG__CHAIN(3, 2) XG__CHAIN(3, 3) XG__CHAIN(3, 4)
            }
#undef XG__CHAIN
        }
    }
}

/* Plane k of g, so many rows of windows from `first` on, through the stage, with which a worker's
 * memory begins. To choose those that count only repays if they see many numbers, and if others
 * are not rare. */
static void XG_(sum_views)(const XG_(pooled) *p, size_t k, size_t first, size_t rows, char *memory,
                           xg_real *sum)
{
    const xg__conv_job *job = p->job;
    const size_t plane = p->ph * p->pw, start = k * plane + first * p->pw;
    const xg_real *stage = (const xg_real *)(void *)memory;
    int32_t *from = (int32_t *)(void *)(memory + p->at_from);
    XG_(views) views;
    views.g = views.weight = job->pg + start;
    views.at = job->at + start;
    views.from = from;
    views.count = rows * p->pw;
    XG_(find_views)(p, views.at, first, rows, from);
    if ((size_t)job->kh * p->line > 64 && XG_(many_zeros)(views.weight, views.count)) {
        xg_real *weight = (xg_real *)(void *)(memory + p->at_weight);
        views.count = XG_(choose_views)(views.weight, views.count, weight, from);
        views.weight = weight;
    }
    XG_(chains)(p, &views, stage + 2 * first * (size_t)job->stride * p->row, sum);
}

/* A chunk of pictures. */
static void XG_(unit_of_pooled)(const void *plan, size_t number, int worker)
{
    const XG_(pooled) *p = (const XG_(pooled) *)plan;
    const size_t n = (size_t)p->job->n, o = (size_t)p->job->o, end = (number + 1) * n / p->chunks;
    const size_t size = (size_t)p->job->kh * p->line;
    char *memory = (char *)p->team->scratch + p->at_desks + (size_t)worker * p->desk;
    xg_real *sum = p->team->scratch + number * p->sums;
    XG_(desk) d;
    size_t i, r, k;
    memset(&d, 0, sizeof d);
    d.stage = (xg_real *)(void *)memory;
    d.offset = (size_t *)(void *)(memory + p->at_offset);
    d.run = (XG_(run) *)(void *)(memory + p->at_run);
    d.squares = (xg_real *)(void *)(memory + p->at_squares);
    memset(sum, 0, p->sums * sizeof *sum);
    memset(d.stage, 0, p->at_offset);
    for (i = number * n / p->chunks; i < end; i++) {
        XG_(stage_pooled)(p, i, &d);
        for (r = 0; r < p->ph; r += p->band) {
            const size_t rows = xg__min(p->band, p->ph - r);
            for (k = 0; k < o; k++) {
                XG_(sum_views)(p, i * o + k, r, rows, memory, sum + k * size);
            }
        }
    }
}

/* The gradients of the weights of a plane of g: chunks are added up, and taps go innermost. */
static void XG_(answer_pooled)(const void *plan, size_t number, int worker)
{
    const XG_(pooled) *p = (const XG_(pooled) *)plan;
    const xg__conv_job *job = p->job;
    const size_t c = (size_t)job->c, kh = (size_t)job->kh, kw = (size_t)job->kw;
    const size_t size = kh * p->line;
    xg_real *sum = p->team->scratch + number * size, *to = job->y + number * c * kh * kw;
    size_t i, y, x;
    (void)worker;
    for (i = 1; i < p->chunks; i++) XG_(put_run)(sum + i * p->sums, sum, size, true);
    for (i = 0; i < c; i++) {
        for (y = 0; y < kh; y++) {
            for (x = 0; x < kw; x++, to++) {
                const xg_real all = sum[y * p->line + x * p->pixel + i];
                *to = job->add ? *to + all : all;
            }
        }
    }
}

static size_t XG_(pooled_scratch)(const xg__conv_job *job, int workers)
{
    XG_(pooled) plan;
    XG_(plan_pooled)(&plan, job);
    return plan.at_desks + (size_t)workers * plan.desk;
}

static void XG_(run_pooled)(const xg__conv_job *job, const xg__team *team)
{
    XG_(pooled) plan;
    XG_(plan_pooled)(&plan, job);
    plan.team = team;
    XG_(run_units)(team, &plan, plan.chunks, XG_(unit_of_pooled));
    XG_(run_units)(team, &plan, (size_t)job->o, XG_(answer_pooled));
}

/* ============================================================================================== *
 *  3.6 Winograd's algorithm                                                                      *
 * ============================================================================================== *
 *
 * A 3x3 window that moves by single pixels makes 4x4 outputs of a patch of 6x6 inputs, with 16 * 9
 * = 144 products. 36 are enough (Winograd 1980). On one axis: read the three weights w and the
 * gradients of four outputs as polynomials. Their product, the gradients of six inputs, can be had
 * from values: evaluate both at six points, multiply, interpolate. The transpose of that takes six
 * inputs d to four outputs y. The points are 0, p, -p, q, -q and infinity. All three steps are
 * matrices, and act on both axes of a picture (' transposed, o number by number):
 *
 *     y = A' [ (G w G') o (B' d B) ] A
 *
 *          | r   0    -s   0   1   0 |        | a   0    0   |        | 1   0   0    0    |
 *          | 0  -pqq  -qq  p   1   0 |        | b   bp   bpp |        | 1   p   pp   ppp  |
 *     B' = | 0   pqq  -qq -p   1   0 |    G = | b  -bp   bpp |    A = | 1  -p   pp  -ppp  |
 *          | 0  -qpp  -pp  q   1   0 |        | c   cq   cqq |        | 1   q   qq   qqq  |
 *          | 0   qpp  -pp -q   1   0 |        | c  -cq   cqq |        | 1  -q   qq  -qqq  |
 *          | 0   r     0  -s   0   1 |        | 0   0    1   |        | 0   0   0    1    |
 *
 *     r = ppqq    s = pp + qq    a = 1 / r    b = 1 / (2pp (pp - qq))    c = 1 / (2qq (qq - pp))
 *
 * Sums over planes go inside the bracket. So the heart is 36 products of matrices, one for each
 * pair of points: planes out by planes in times planes in by patches.
 *
 *     x: patches of 6x6 --- B' d B ---> 36 x panels of columns ---+
 *                                                                 +--- 36 products --- A' m A --- y
 *     w: windows of 3x3 --- G w G' ---> 36 x rows ----------------+
 *
 * An input gradient is the same with its weights turned round, and in and out exchanged. A weight
 * gradient is a window of 4x4 gradients g that makes 3x3 answers of the same 6x6 patches: A and G
 * change places, and the products are g's planes by patches times patches by x's planes.
 *
 *     dw = G' [ sum over patches of (A g A') o (B' d B) ] G
 *
 * With p = 5/8 and q = 3/2, all powers stay near 1, which keeps the error at less than half of what
 * the usual 1 and 2 give; B and A are exact in binary. Measured on random numbers against sums in
 * double (tests/test_winograd.c), relative to the norm of the result: 5e-7 with 16 planes in, 8e-7
 * with 64, 1.5e-6 with 512 for convolutions and input gradients, 1.1e-6 for weight gradients of
 * 3136 patches; a single number is off by at most 1e-5 of the root mean square. (The direct way,
 * 3.5: 3e-7, and 3e-6.)
 *
 * Numeric contract. Transforms are fixed expressions. A sum over in planes is a chain of fma in
 * their order, cut into blocks that are added in order, and a sum over patches likewise; the blocks
 * depend on shapes alone, and so does whether this algorithm is used at all (3.0.3). */

#define XG__PATCH     6        /* a patch is 6x6                                                  */
#define XG__POINTS    36
#define XG__STRETCH   96       /* patches of a weight gradient that are summed at a time          */
#define XG__FEW       24       /* rows of a product whose answers are made together               */

/* 3.6.1 One axis. The map from n numbers to m; n and m tell which: 6 to 6 is B', 3 to 6 G, 4 to 6
 *       A, 6 to 4 A', 6 to 3 G'. */

#define XG__P ((xg_real)0.625)
#define XG__Q ((xg_real)1.5)
#define XG__PP (XG__P * XG__P)
#define XG__QQ (XG__Q * XG__Q)
#define XG__ZERO_SHARE (1 / (XG__PP * XG__QQ))                       /* 1 / N'(0), see G: a */
#define XG__P_SHARE (1 / (2 * XG__PP * (XG__PP - XG__QQ)))           /* b */
#define XG__Q_SHARE (1 / (2 * XG__QQ * (XG__QQ - XG__PP)))           /* c */

/* plus = even + point * odd, minus = even - point * odd. */
XG__INLINE void XG_(at_points)(xg_real point, XG_(v) even, XG_(v) odd, XG_(v) *plus, XG_(v) *minus)
{
    *plus = XG_(fma)(XG_(set1)(point), odd, even);
    *minus = XG_(fnma)(XG_(set1)(point), odd, even);
}

XG__INLINE void XG_(axis_of_patch)(const XG_(v) *d, XG_(v) *to)
{
    const XG_(v) pp = XG_(set1)(XG__PP), qq = XG_(set1)(XG__QQ);
    const XG_(v) r = XG_(set1)(XG__PP * XG__QQ), s = XG_(set1)(XG__PP + XG__QQ);
    to[0] = XG_(fma)(r, d[0], XG_(fnma)(s, d[2], d[4]));
    XG_(at_points)(XG__P, XG_(fnma)(qq, d[2], d[4]), XG_(fnma)(qq, d[1], d[3]), &to[1], &to[2]);
    XG_(at_points)(XG__Q, XG_(fnma)(pp, d[2], d[4]), XG_(fnma)(pp, d[1], d[3]), &to[3], &to[4]);
    to[5] = XG_(fma)(r, d[1], XG_(fnma)(s, d[3], d[5]));
}

XG__INLINE void XG_(axis_of_weights)(const XG_(v) *w, XG_(v) *to)
{
    int i;
    XG_(at_points)(XG__P, XG_(fma)(XG_(set1)(XG__PP), w[2], w[0]), w[1], &to[1], &to[2]);
    XG_(at_points)(XG__Q, XG_(fma)(XG_(set1)(XG__QQ), w[2], w[0]), w[1], &to[3], &to[4]);
    to[0] = XG_(mul)(XG_(set1)(XG__ZERO_SHARE), w[0]);
    XG__UNROLL
    for (i = 1; i < 3; i++) to[i] = XG_(mul)(XG_(set1)(XG__P_SHARE), to[i]);
    XG__UNROLL
    for (i = 3; i < 5; i++) to[i] = XG_(mul)(XG_(set1)(XG__Q_SHARE), to[i]);
    to[5] = w[2];
}

XG__INLINE void XG_(axis_of_gradient)(const XG_(v) *g, XG_(v) *to)
{
    const XG_(v) pp = XG_(set1)(XG__PP), qq = XG_(set1)(XG__QQ);
    to[0] = g[0];
    XG_(at_points)(XG__P, XG_(fma)(pp, g[2], g[0]), XG_(fma)(pp, g[3], g[1]), &to[1], &to[2]);
    XG_(at_points)(XG__Q, XG_(fma)(qq, g[2], g[0]), XG_(fma)(qq, g[3], g[1]), &to[3], &to[4]);
    to[5] = g[3];
}

/* a * x + b * y */
XG__INLINE XG_(v) XG_(both)(xg_real a, XG_(v) x, xg_real b, XG_(v) y)
{
    return XG_(fma)(XG_(set1)(b), y, XG_(mul)(XG_(set1)(a), x));
}

/* The sums and differences of what belongs to p, -p and to q, -q share all that follows. */
XG__INLINE void XG_(axis_of_answer)(const int m, const XG_(v) *from, XG_(v) *to)
{
    const XG_(v) ps = XG_(add)(from[1], from[2]), pd = XG_(sub)(from[1], from[2]);
    const XG_(v) qs = XG_(add)(from[3], from[4]), qd = XG_(sub)(from[3], from[4]);
    if (m == 4) {
        to[0] = XG_(add)(from[0], XG_(add)(ps, qs));
        to[1] = XG_(both)(XG__P, pd, XG__Q, qd);
        to[2] = XG_(both)(XG__PP, ps, XG__QQ, qs);
        to[3] = XG_(fma)(XG_(set1)(XG__Q * XG__QQ), qd,
                         XG_(fma)(XG_(set1)(XG__P * XG__PP), pd, from[5]));
    } else {
        to[0] = XG_(fma)(XG_(set1)(XG__Q_SHARE), qs,
                         XG_(both)(XG__ZERO_SHARE, from[0], XG__P_SHARE, ps));
        to[1] = XG_(both)(XG__P_SHARE * XG__P, pd, XG__Q_SHARE * XG__Q, qd);
        to[2] = XG_(fma)(XG_(set1)(XG__Q_SHARE * XG__QQ), qs,
                         XG_(fma)(XG_(set1)(XG__P_SHARE * XG__PP), ps, from[5]));
    }
}

XG__INLINE void XG_(one_axis)(const int n, const int m, const XG_(v) *from, XG_(v) *to)
{
    if (n == 3) XG_(axis_of_weights)(from, to);
    else if (n == 4) XG_(axis_of_gradient)(from, to);
    else if (m == 6) XG_(axis_of_patch)(from, to);
    else XG_(axis_of_answer)(m, from, to);
}

/* Both axes of XG__LANES squares at once: from[i][j] lies at from + (i * n + j) * step, or if they
 * are `turned` round, in the opposite order. */
XG__INLINE void XG_(both_axes)(const int n, const int m, const bool turned, const xg_real *from,
                               size_t step, xg_real *to, size_t to_step)
{
    XG_(v) half[XG__PATCH][XG__PATCH], line[XG__PATCH], done[XG__PATCH];
    int i, j;
    XG__UNROLL
    for (j = 0; j < n; j++) {
        XG__UNROLL
        for (i = 0; i < n; i++) {
            const int at = turned ? n * n - 1 - (i * n + j) : i * n + j;
            line[i] = XG_(load)(from + (size_t)at * step);
        }
        XG_(one_axis)(n, m, line, done);
        XG__UNROLL
        for (i = 0; i < m; i++) half[i][j] = done[i];
    }
    XG__UNROLL
    for (i = 0; i < m; i++) {
        XG_(one_axis)(n, m, half[i], done);
        XG__UNROLL
        for (j = 0; j < m; j++) XG_(store)(to + (size_t)(i * m + j) * to_step, done[j]);
    }
}

/* 3.6.2 Planning. Patches are counted through all images, row by row; number i of an image begins
 *       at pixel 4 * (i / across) - pad, 4 * (i % across) - pad of each of its planes. */
typedef struct XG_(planes) {   /* what patches are taken from                                     */
    const xg_real *base;
    const xg_real *at;         /* not NULL: places of what base has, behind a max-pool (3.5.10)   */
    size_t count;              /* of an image                                                     */
    int h, w, pad;
    int side;                  /* 6; or 4, for g of a weight gradient                             */
} XG_(planes);

typedef struct XG_(winograd) {
    const xg__conv_job *job;
    const xg__team *team;
    XG_(planes) in, g;         /* g: of a weight gradient                                         */
    xg_real *out;
    size_t out_planes;
    int oh, ow;                /* of planes out, or of g: what is cut into 4x4                    */
    size_t down, across;       /* patches of an image                                             */
    size_t out_step, in_step;  /* from the weights of one plane out (in) to the next              */
    bool flip;                 /* they are read backwards                                         */
    bool few;                  /* few patches: their transform is shared, else that of weights;   */
                               /* weight gradient: one stretch holds them all                     */
    bool brief;                /* three or four planes in, whose products are not kept            */
    XG_(cut) rows, patches;    /* rows: planes out                                                */
    XG_(cut) k;                /* planes in; weight gradient: patches                             */
    size_t a_stride;           /* of transformed weights, or g                                    */
    size_t c_stride;           /* of products                                                     */
    size_t a_apart, b_apart, c_apart;          /* from the matrix of one point to the next        */
    size_t b_block;            /* from one block of patches to the next                           */
    size_t pitch, zeros;       /* of a line of mixed rows; where those end                        */
    size_t steps;              /* of k, at most, in one product                                   */
    size_t stretch;            /* weight gradient: the block of k that is being added             */
    size_t at_b, at_c;         /* weight gradient: columns and products, in what is shared        */
    size_t shared;             /* numbers in front of the desks                                   */
    size_t desk_b, desk_c, desk_lines, desk_room, desk_step, desk_seat;        /* bytes; `a` at 0 */
    size_t desk_place, desk_from, desk_swath, desk;
} XG_(winograd);

/* A patch: where its outputs go, how many there are; whether it and those behind it, that make a
 * vector, have all of them. */
typedef struct XG_(seat) {
    size_t to;
    size_t window;             /* the number of its first window of 2x2, through all planes       */
    int rows, columns;
    bool whole;
} XG_(seat);

/* Patches of a block in one row of patches, and what they see of a plane: n numbers, of rows from
 * `top` on, from `column` on; they go to mixed rows from number `begin` on. */
typedef struct XG_(swath) {
    size_t image, column, begin, n;
    int top;
    bool below;                /* the swath before is the one above: two rows are seen again      */
} XG_(swath);

/* A worker's scratch. */
typedef struct XG_(bench) {
    xg_real *a, *b, *c;        /* rows, columns and products of one unit                          */
    xg_real *lines, *zeros;    /* mixed rows; a row of zeros                                      */
    xg_real *placed;           /* rows from behind a max-pool                                     */
    xg_real *room;             /* for squares being turned                                        */
    size_t *step;
    XG_(seat) *seat;
    xg_real *place;            /* where in their plane patches begin                              */
    const xg_real **from;      /* where among the mixed rows                                      */
    XG_(swath) *swath;
} XG_(bench);

/* How far apart the matrices of two points lie: never a multiple of the cache's period, or the 36
 * would fight for the same few lines. */
XG__INLINE size_t XG_(apart)(size_t size) { return XG_(round_up)(size, 1024) + 16; }

static XG_(bench) XG_(bench_of)(const XG_(winograd) *p, int worker)
{
    char *memory = (char *)(p->team->scratch + p->shared) + (size_t)worker * p->desk;
    XG_(bench) d;
    size_t i;
    d.a = (xg_real *)(void *)memory;
    d.b = (xg_real *)(void *)(memory + p->desk_b);
    d.c = (xg_real *)(void *)(memory + p->desk_c);
    d.lines = (xg_real *)(void *)(memory + p->desk_lines);
    d.room = (xg_real *)(void *)(memory + p->desk_room);
    d.step = (size_t *)(void *)(memory + p->desk_step);
    d.seat = (XG_(seat) *)(void *)(memory + p->desk_seat);
    d.place = (xg_real *)(void *)(memory + p->desk_place);
    d.from = (const xg_real **)(void *)(memory + p->desk_from);
    d.swath = (XG_(swath) *)(void *)(memory + p->desk_swath);
    d.zeros = d.lines + p->zeros;
    d.placed = d.zeros + p->pitch;
    memset(d.zeros, 0, p->pitch * sizeof *d.zeros);
    for (i = 0; i < p->steps; i++) d.step[i] = i * XG__NR;
    return d;
}

static XG_(planes) XG_(planes_of)(const xg_real *base, int count, int h, int w, int pad, int side)
{
    const XG_(planes) s = { base, NULL, (size_t)count, h, w, pad, side };
    return s;
}

/* What comes in, what goes out, and how weights lie. */
static void XG_(winograd_roles)(XG_(winograd) *p, const xg__conv_job *job)
{
    memset(p, 0, sizeof *p);
    p->job = job;
    p->out = job->y;
    p->in = XG_(planes_of)(job->px, job->c, job->h, job->w, job->pad, XG__PATCH);
    p->g = XG_(planes_of)(job->pg, job->o, job->oh, job->ow, 0, 4);
    p->out_planes = (size_t)job->o;
    p->out_step = (size_t)job->c * 9;
    p->in_step = 9;
    p->oh = job->oh;
    p->ow = job->ow;
    if (job->kind == XG__CONV_DX) {
        p->in = XG_(planes_of)(job->pg, job->o, job->oh, job->ow, 2 - job->pad, XG__PATCH);
        p->in.at = job->at;
        p->out_planes = (size_t)job->c;
        p->out_step = 9;
        p->in_step = (size_t)job->c * 9;
        p->oh = job->h;
        p->ow = job->w;
        p->flip = true;
    }
    p->down = XG_(ceil_div)((size_t)p->oh, 4);
    p->across = XG_(ceil_div)((size_t)p->ow, 4);
    p->rows = XG_(axis)(1, p->out_planes);
    p->patches = XG_(axis)(1, (size_t)job->n * p->down * p->across);
}

/* Lays out a desk. `lines`: how many rows of patches are mixed at a time, of so many patches. */
static void XG_(winograd_desk)(XG_(winograd) *p, size_t a, size_t b, size_t c, size_t lines,
                               size_t patches, size_t k)
{
    const size_t room = sizeof(xg_real), width = xg__min(p->across, patches);
    size_t placed = 0;
    p->steps = k;
    p->pitch = XG_(round_up)(4 * width + 4 + XG__LANES, 16);
    p->zeros = lines * XG__PATCH * p->pitch;
    p->desk_b = XG_(after)(0, XG__POINTS * a, room);
    p->desk_c = XG_(after)(p->desk_b, XG__POINTS * b, room);
    p->desk_lines = XG_(after)(p->desk_c, XG__POINTS * c, room);
    if (p->in.at != NULL) placed = 8 * (size_t)p->in.w;
    p->desk_room = XG_(after)(p->desk_lines, p->zeros + p->pitch + placed, room);
    p->desk_step = XG_(after)(p->desk_room, 2 * 16 * XG__LANES + XG__ROOM, room);
    p->desk_seat = XG_(after)(p->desk_step, k, sizeof(size_t));
    p->desk_place = XG_(after)(p->desk_seat, patches + XG__LANES, sizeof(XG_(seat)));
    p->desk_from = XG_(after)(p->desk_place, patches + XG__LANES, room);
    p->desk_swath = XG_(after)(p->desk_from, patches + XG__LANES, sizeof(xg_real *));
    p->desk = XG_(after)(p->desk_swath, lines, sizeof(XG_(swath)));
}

/* Weight gradient. The sum over patches is cut into stretches; for each, x and g are transformed,
 * then the points are shared out. All of it is in shared scratch; but if there is one stretch only,
 * rows are shared out, and products need not be kept. */
static void XG_(plan_winograd_dw)(XG_(winograd) *p, const xg__conv_job *job)
{
    size_t lines, stretch;
    XG_(winograd_roles)(p, job);
    p->k = XG_(cut_axis)(p->patches, XG__STRETCH, 1);
    p->few = p->k.blocks == 1;
    p->rows = XG_(cut_axis)(p->rows, p->few ? XG__FEW : 2 * XG__FEW, XG__MR);
    stretch = XG_(longest)(&p->k);
    p->a_stride = XG_(round_up)(stretch, 16);
    p->c_stride = XG_(round_up)(p->in.count, XG__NR);
    p->a_apart = XG_(apart)(p->out_planes * p->a_stride);
    p->b_apart = XG_(apart)(p->c_stride * stretch);
    p->c_apart = XG_(apart)((p->few ? XG_(longest)(&p->rows) : p->out_planes) * p->c_stride);
    p->at_b = XG__POINTS * p->a_apart;
    p->at_c = XG__POINTS * p->b_apart + p->at_b;
    p->shared = p->at_c + (p->few ? 0 : XG__POINTS * p->c_apart);
    lines = xg__max((stretch + p->across - 2) / p->across + 1, XG__LANES);
    XG_(winograd_desk)(p, 0, 0, p->few ? p->c_apart : 0, lines, stretch, stretch);
}

/* Forward and input gradient. What takes less room is transformed first, for all to share. With
 * many patches, that is the weights, and a unit is a block of patches with all planes out; with
 * few, it is the patches, and a unit is a block of planes out with all patches. */
static void XG_(plan_winograd)(XG_(winograd) *p, const xg__conv_job *job, int workers)
{
    size_t target = 64, a, b, c, lines;
    if (job->kind == XG__CONV_DW) {
        XG_(plan_winograd_dw)(p, job);
        return;
    }
    XG_(winograd_roles)(p, job);
    p->k = XG_(cut_axis)(XG_(axis)(1, p->in.count), XG__BLOCK_K, 1);
    p->a_stride = XG_(round_up)(p->in.count, 32) + 16;
    p->few = p->patches.minor < p->out_planes;
    if (workers > 1 && p->patches.minor < 8 * target * (size_t)workers) target = 32;
    p->patches = XG_(cut_axis)(p->patches, target, XG__NR);
    p->rows = XG_(cut_axis)(p->rows, p->few ? XG__MR : XG__FEW, XG__MR);
    p->c_stride = XG_(round_up)(XG_(longest)(&p->patches), XG__NR);
    a = (p->few ? XG_(longest)(&p->rows) : p->out_planes) * p->a_stride;
    b = p->c_stride * p->in.count;
    c = p->c_stride * XG_(longest)(&p->rows);
    p->a_apart = XG_(apart)(a);
    p->b_apart = XG_(apart)(b);
    p->c_apart = XG_(apart)(c);
    p->b_block = XG__POINTS * p->b_apart;
    p->shared = p->few ? p->patches.blocks * p->b_block : XG__POINTS * p->a_apart;
    p->brief = !p->few && xg__winograd_brief(p->in.count);
    if (p->brief) {            /* all weights of a plane out lie together */
        p->a_apart = XG_(round_up)(4, XG__LANES);
        p->a_stride = XG__POINTS * p->a_apart;
        p->shared = p->out_planes * p->a_stride;
    }
    lines = (XG_(longest)(&p->patches) + p->across - 2) / p->across + 1;
    XG_(winograd_desk)(p, p->few ? p->a_apart : 0, p->few ? 0 : p->b_apart, p->c_apart, lines,
                       XG_(longest)(&p->patches), XG_(longest)(&p->k));
}

/* 3.6.3 Transforms in. First the axis down, on whole rows: for a row of patches, the rows of a
 *       plane that it sees become six mixed ones, padding included. */

/* A vector, or the n numbers that are left, of each row. */
XG__INLINE void XG_(mix_vector)(const int side, const bool whole, const xg_real *const *from,
                                size_t at, size_t n, xg_real *to, size_t pitch)
{
    XG_(v) seen[XG__PATCH], mixed[XG__PATCH];
    int i;
    XG__UNROLL
    for (i = 0; i < side; i++) {
        seen[i] = whole ? XG_(load)(from[i] + at) : XG_(load_part)(from[i] + at, n);
    }
    XG_(one_axis)(side, XG__PATCH, seen, mixed);
    XG__UNROLL
    for (i = 0; i < XG__PATCH; i++, to += pitch) XG_(store)(to, mixed[i]);
}

/* Patches [first, first + count) of a row of patches. `next`: those of the row above came last. */
static XG_(swath) XG_(swath_of)(const XG_(winograd) *p, const XG_(planes) *s, size_t row,
                                size_t first, size_t count, bool next)
{
    const int left = 4 * (int)first - s->pad;
    const size_t width = 4 * count + (size_t)s->side - 4;
    XG_(swath) swath;
    swath.image = row / p->down;
    swath.top = 4 * (int)(row % p->down) - s->pad;
    swath.below = next && row % p->down > 0;
    swath.begin = left < 0 ? (size_t)-left : 0;
    swath.column = left < 0 ? 0 : (size_t)left;
    swath.n = xg__min((size_t)(s->w - left), width) - swath.begin;
    return swath;
}

/* Behind a max-pool: makes the rows of a plane that a swath sees, two at a time, unless they are
 * there. Each of eight has its own place. */
static void XG_(place_swath)(const XG_(planes) *s, size_t plane, const XG_(swath) *swath,
                             const XG_(bench) *d)
{
    const size_t w = (size_t)s->w, windows = w / 2, down = (size_t)s->h / 2;
    const size_t end = xg__min((size_t)(swath->top + XG__PATCH + 1) / 2, down);
    size_t pair = swath->top < 0 ? 0 : (size_t)swath->top / 2;
    if (swath->below) pair = (size_t)(swath->top + 1) / 2 + 1;
    for (; pair < end; pair++) {
        const size_t from = (plane * down + pair) * windows;
        size_t e;
        for (e = 0; e < windows; e += 16) {                            /* of the next plane */
            XG__PREFETCH(s->base + from + e, down * windows);
            XG__PREFETCH(s->at + from + e, down * windows);
        }
        XG_(place_rows)(s->base + from, s->at + from, 2 * (int)pair, s->w,
                        d->placed + pair % 4 * 2 * w);
    }
}

/* A swath of a plane. Of a row that is outside, or that no window covers, all numbers are 0. */
XG__INLINE void XG_(mix_rows)(const int side, const XG_(winograd) *p, const XG_(planes) *s,
                              size_t plane, const XG_(swath) *swath, const XG_(bench) *d,
                              xg_real *to)
{
    const size_t w = (size_t)s->w, area = (size_t)s->h * w, n = swath->n, pitch = p->pitch;
    const size_t number = swath->image * s->count + plane;
    const xg_real *from[XG__PATCH];
    size_t e;
    int i;
    if (s->at != NULL) XG_(place_swath)(s, number, swath, d);
    XG__UNROLL
    for (i = 0; i < side; i++) {
        const int y = swath->top + i;
        if (y < 0 || y >= (s->at != NULL ? s->h / 2 * 2 : s->h)) from[i] = d->zeros;
        else if (s->at != NULL) from[i] = d->placed + (size_t)y % 8 * w + swath->column;
        else from[i] = s->base + number * area + (size_t)y * w + swath->column;
    }
    to += swath->begin;
    for (e = 0; e + XG__LANES <= n; e += XG__LANES) {
        for (i = 0; s->at == NULL && e % 16 == 0 && i < 4; i++) XG__PREFETCH(from[i] + e, area);
        XG_(mix_vector)(side, true, from, e, 0, to + e, pitch);
    }
    if (e < n) XG_(mix_vector)(side, false, from, e, n - e, to + e, pitch);
}

/* Clears mixed rows. What lies outside a plane then stays 0 for all planes of the same patches. */
static void XG_(clear_lines)(const XG_(winograd) *p, const XG_(bench) *d)
{
    memset(d->lines, 0, p->zeros * sizeof *d->lines);
}

/* Then the axis across, on XG__LANES patches at once, a lane each; `from`: where the mixed rows of
 * each begin. What belongs to a point goes to `to` + point * apart. */
XG__INLINE void XG_(across_rows)(const int side, const XG_(winograd) *p, const xg_real *const *from,
                                 xg_real *to, size_t apart)
{
    const size_t pitch = p->pitch;
    XG_(v) seen[8], done[XG__PATCH];
    int i, j;
    for (i = 0; i < XG__PATCH; i++) {
        XG_(load_fours)(from, (size_t)i * pitch, seen);
        if (side > 4) XG_(load_fours)(from, (size_t)i * pitch + 4, seen + 4);
        XG_(one_axis)(side, XG__PATCH, seen, done);
        XG__UNROLL
        for (j = 0; j < XG__PATCH; j++, to += apart) XG_(store)(to, done[j]);
    }
}

/* The seats of a block of patches; the last one is repeated, to fill a vector. */
static void XG_(find_seats)(const XG_(winograd) *p, XG_(span) patches, const XG_(bench) *d)
{
    XG_(seat) *seat = d->seat;
    xg_real *place = d->place;
    size_t line = 0, row = patches.minor / p->across, x = patches.minor % p->across, left = x, i;
    size_t full = 0;           /* so many before this one are whole */
    for (i = 0; i < patches.minors; i++, seat++) {
        const size_t y = row % p->down * 4, image = row / p->down * p->out_planes;
        d->from[i] = d->lines + line + 4 * (x - left);
        seat->to = image * (size_t)p->oh * (size_t)p->ow + y * (size_t)p->ow + 4 * x;
        seat->window = (image * (size_t)p->oh + y) / 2 * ((size_t)p->ow / 2) + 2 * x;
        *place++ = (xg_real)(y * (size_t)p->ow + 4 * x);
        seat->rows = (int)xg__min(4, (size_t)p->oh - y);
        seat->columns = (int)xg__min(4, (size_t)p->ow - 4 * x);
        seat->whole = false;
        full = seat->rows == 4 && seat->columns == 4 ? full + 1 : 0;
        if (full >= XG__LANES) seat[1 - XG__LANES].whole = true;
        if (++x < p->across) continue;
        x = left = 0;
        row++;
        line += XG__PATCH * p->pitch;
    }
    for (i = 0; i < XG__LANES; i++) {
        seat[i] = seat[-1];
        place[i] = place[-1];
        d->from[patches.minors + i] = d->from[patches.minors - 1];
    }
}

/* The swaths of a block of patches; how many these are. */
static size_t XG_(find_swaths)(const XG_(winograd) *p, const XG_(planes) *s, XG_(span) patches,
                               const XG_(bench) *d)
{
    const size_t last = patches.minor + patches.minors;
    size_t swaths = 0, i, n;
    for (i = patches.minor; i < last; i += n) {
        n = xg__min(p->across - i % p->across, last - i);
        d->swath[swaths] = XG_(swath_of)(p, s, i / p->across, i % p->across, n, swaths > 0);
        swaths++;
    }
    return swaths;
}

/* A block of patches of one plane, a lane each, whose seats and swaths are found. Number i goes to
 * i / XG__NR * panel + i % XG__NR. */
XG__INLINE void XG_(see_plane)(const int side, const XG_(winograd) *p, const XG_(planes) *s,
                               size_t plane, size_t patches, size_t swaths, const XG_(bench) *d,
                               xg_real *to, size_t panel, size_t apart)
{
    xg_real *lines = d->lines;
    size_t i;
    for (i = 0; i < swaths; i++, lines += XG__PATCH * p->pitch) {
        XG_(mix_rows)(side, p, s, plane, d->swath + i, d, lines);
    }
    for (i = 0; i < patches; i += XG__LANES) {
        XG_(across_rows)(side, p, d->from + i, to + i / XG__NR * panel + i % XG__NR, apart);
    }
}

/* A block of patches of planes in [begin, end), to panels of columns. */
static void XG_(see_planes)(const XG_(winograd) *p, XG_(span) patches, size_t begin, size_t end,
                            const XG_(bench) *d, xg_real *to)
{
    const size_t swaths = XG_(find_swaths)(p, &p->in, patches, d);
    size_t c;
    XG_(find_seats)(p, patches, d);
    XG_(clear_lines)(p, d);
    for (c = begin; c < end; c++) {
        XG_(see_plane)(XG__PATCH, p, &p->in, c, patches.minors, swaths, d, to + c * XG__NR,
                       p->in.count * XG__NR, p->b_apart);
    }
}

/* A block of patches of the XG__NR planes from `plane` on, a lane each; number i goes to line i of
 * their panel. */
static void XG_(see_patches)(const XG_(winograd) *p, XG_(span) patches, size_t plane,
                             const XG_(bench) *d, xg_real *to)
{
    const size_t last = patches.minor + patches.minors, line = XG__PATCH * p->pitch;
    const xg_real *from[XG__LANES];
    size_t i, j, v, l, n;
    for (i = patches.minor; i < last; i += n, to += n * XG__NR) {
        XG_(swath) swath;
        n = xg__min(p->across - i % p->across, last - i);
        swath = XG_(swath_of)(p, &p->in, i / p->across, i % p->across, n, false);
        if (i < patches.minor + p->across) XG_(clear_lines)(p, d);     /* the first may be a part */
        for (v = 0; v < XG__NR && plane + v < p->in.count; v += XG__LANES) {
            for (l = 0; l < XG__LANES; l++) {
                XG_(mix_rows)(XG__PATCH, p, &p->in, xg__min(plane + v + l, p->in.count - 1), &swath,
                              d, d->lines + l * line);
            }
            for (j = 0; j < n; j++) {
                for (l = 0; l < XG__LANES; l++) from[l] = d->lines + l * line + 4 * j;
                XG_(across_rows)(XG__PATCH, p, from, to + j * XG__NR + v, p->b_apart);
            }
        }
    }
}

/* The weights of a plane out with n planes in, a lane each. */
static void XG_(see_weights)(const XG_(winograd) *p, const xg_real *w, size_t n,
                             const XG_(bench) *d, xg_real *to)
{
    const size_t step = p->in_step;
    xg_real *room = d->room;
    size_t t = 0, l;
    for (l = 0; l < n; l++) XG__PREFETCH(w + l * step, p->flip ? 32 : 288);    /* read soon */
    if (n == XG__LANES) {
        for (; t + XG__LANES <= 9; t += XG__LANES) {
            XG_(transpose)(w + t, step, room + t * XG__LANES, XG__LANES);
        }
    }
    for (; t < 9; t++) {
        for (l = 0; l < XG__LANES; l++) room[t * XG__LANES + l] = l < n ? w[l * step + t] : 0;
    }
    if (p->flip) XG_(both_axes)(3, XG__PATCH, true, room, XG__LANES, to, p->a_apart);
    else XG_(both_axes)(3, XG__PATCH, false, room, XG__LANES, to, p->a_apart);
}

/* Those of planes out [row, row + rows), in the order in which they lie in memory; but 16 planes in
 * at a time, a whole line of what is written. */
static void XG_(see_all_weights)(const XG_(winograd) *p, size_t row, size_t rows,
                                 const XG_(bench) *d, xg_real *to)
{
    const size_t planes = p->in.count, groups = XG_(ceil_div)(planes, 16);
    size_t i, c;
    for (i = 0; i < rows * groups; i++) {
        const size_t r = p->flip ? i % rows : i / groups;
        const size_t first = (p->flip ? i / rows : i % groups) * 16;
        const xg_real *w = p->job->pw + (row + r) * p->out_step;
        for (c = first; c < xg__min(first + 16, planes); c += XG__LANES) {
            XG_(see_weights)(p, w + c * p->in_step, xg__min(XG__LANES, planes - c), d,
                             to + r * p->a_stride + c);
        }
    }
}

/* 3.6.4 Products, and transforms out. */

/* All points of a block of planes out by a block of patches. */
static void XG_(multiply_points)(const XG_(winograd) *p, size_t rows, size_t patches,
                                 const xg_real *a, const xg_real *b, const XG_(bench) *d)
{
    XG_(product) product;
    size_t i, j;
    memset(&product, 0, sizeof product);       /* nothing to foresee */
    product.rows = rows;
    product.columns = patches;
    product.a_stride = p->a_stride;
    product.panel = p->in.count * XG__NR;
    product.step = d->step;
    product.c_stride = p->c_stride;
    product.exact = false;
    for (i = 0; i < XG__POINTS; i++) {
        product.c = d->c + i * p->c_apart;
        for (j = 0; j < p->k.blocks; j++) {
            const XG_(span) k = XG_(block)(&p->k, j);
            product.k = k.minors;
            product.a = a + i * p->a_apart + k.minor;
            product.b = b + i * p->b_apart + k.minor * XG__NR;
            product.first = j == 0;
            XG_(multiply)(&product, d->room);
        }
    }
}

/* The 4x4 outputs of a patch; those outside the plane are dropped. `ahead` lie the ones to come. */
XG__INLINE void XG_(put_outputs)(const xg_real *from, const XG_(seat) *seat, xg_real *to,
                                 size_t width, size_t ahead)
{
    int i, j;
    if (seat->rows == 4 && seat->columns == 4) {
        XG__UNROLL
        for (i = 0; i < 4; i++, to += width) {
            XG__PREFETCH(to, ahead);
            memcpy(to, from + 4 * i, 4 * sizeof *to);
        }
        return;
    }
    for (i = 0; i < seat->rows; i++) {
        for (j = 0; j < seat->columns; j++) to[(size_t)i * width + (size_t)j] = from[4 * i + j];
    }
}

/* Adds to the outputs of a patch what lies in their place in another picture, then ReLU. */
static void XG_(add_more)(const xg__finish *f, const XG_(seat) *seat, const xg_real *more,
                          size_t width, xg_real *to)
{
    xg_real patch[16];
    size_t e;
    int i;
    if (seat->rows < 4 || seat->columns < 4) memset(patch, 0, sizeof patch);
    for (i = 0; i < seat->rows; i++, more += width) {
        if (seat->columns == 4) memcpy(patch + 4 * i, more, 4 * sizeof *more);
        else memcpy(patch + 4 * i, more, (size_t)seat->columns * sizeof *more);
    }
    for (e = 0; e < 16; e += XG__LANES) {
        const XG_(v) x = XG_(add)(XG_(load)(to + e), XG_(load)(patch + e));
        XG_(store)(to + e, f->relu ? XG_(relu)(x) : x);
    }
}

/* Finishes the outputs of a vector of patches, as far as that goes before they are turned. */
static void XG_(finish_patches)(const xg__finish *f, size_t channel, xg_real *outputs)
{
    const XG_(channel) c = XG_(channel_of)(f, channel);
    size_t e;
    for (e = 0; e < 16; e++, outputs += XG__LANES) {
        XG_(store)(outputs, XG_(finish)(&c, XG_(load)(outputs)));
    }
}

/* Row i of the windows, two of each patch, to their place; a lone lane's two halves are its two
 * windows. `ahead` lie those of the next plane. */
XG__INLINE void XG_(put_windows)(const XG_(seat) *seat, size_t n, int i, XG_(v) left,
                                 XG_(v) right, xg_real *room, xg_real *to, size_t ahead)
{
    const size_t last = XG__LANES - 1, low = last / 2, high = XG__LANES / 2;   /* two halves */
    const bool joined = seat->whole && seat[low].window == seat->window + 2 * low
                     && seat[last].window == seat[high].window + 2 * (last - high);
    size_t l;
    XG__PREFETCH(to + seat->window, ahead);
    XG_(store)(joined ? to + seat->window : room, XG_(mix_low)(left, right));
    XG_(store)(joined ? to + seat[high].window + XG__LANES % 2 : room + XG__LANES,
               XG_(mix_high)(left, right));
    for (l = 0; l < n && !joined; l++) {
        if (seat[l].rows <= 2 * i) continue;
        if (seat[l].columns == 4) memcpy(to + seat[l].window, room + 2 * l, 2 * sizeof *to);
        else to[seat[l].window] = room[2 * l];
    }
}

/* Finishes a vector of patches, whose outputs lie point by point in d->room, and pools them. */
static void XG_(pool_patches)(const XG_(winograd) *p, const XG_(seat) *seat, size_t n,
                              size_t plane, const XG_(bench) *d)
{
    const xg__finish *f = &p->job->finish;
    const XG_(channel) c = XG_(channel_of)(f, plane);
    const size_t width = (size_t)p->ow / 2, windows = (size_t)p->oh / 2 * width;
    const size_t base = plane * windows;
    const XG_(v) first = XG_(load)(d->place + (seat - d->seat));
    xg_real *room = d->room + 16 * XG__LANES;
    int i, j;
    for (i = 0; i < 2; i++) {
        XG_(lead) lead[2];
        XG__UNROLL
        for (j = 0; j < 2; j++) {
            const xg_real *from = d->room + (8 * i + 2 * j) * XG__LANES;
            const XG_(v) at = XG_(add)(first, XG_(set1)((xg_real)(2 * i * p->ow + 2 * j)));
            lead[j] = XG_(best_of_fours)(
                XG_(finish)(&c, XG_(load)(from)), XG_(finish)(&c, XG_(load)(from + XG__LANES)),
                XG_(finish)(&c, XG_(load)(from + 4 * XG__LANES)),
                XG_(finish)(&c, XG_(load)(from + 5 * XG__LANES)), at, p->ow);
        }
        if (f->places != NULL) {
            XG_(put_windows)(seat, n, i, lead[0].at, lead[1].at, room,
                             f->places + base + (size_t)i * width, windows);
        }
        if (f->maxima == NULL) continue;
        XG_(put_windows)(seat, n, i, lead[0].best, lead[1].best, room,
                         f->maxima + base + (size_t)i * width, windows);
    }
}

/* Some planes' outputs of a vector of patches, which lie point by point in d->room, to their place.
 * Those that must be added to or cut at the plane's sides pass through memory. */
static void XG_(put_patches)(const XG_(winograd) *p, const XG_(seat) *seat, size_t n,
                             const xg_real *more, const XG_(bench) *d, xg_real *plane)
{
    const size_t width = (size_t)p->ow, area = (size_t)p->oh * width;
    xg_real *to[XG__LANES], *turned = d->room + 16 * XG__LANES;
    XG_(v) row[4];
    const bool whole = seat->whole && more == NULL;
    size_t l;
    int i, j;
    for (l = 0; l < XG__LANES; l++) to[l] = whole ? plane + seat[l].to : turned + 16 * l;
    for (i = 0; i < 4; i++) {
        XG__UNROLL
        for (j = 0; j < 4; j++) row[j] = XG_(load)(d->room + (4 * i + j) * XG__LANES);
        for (l = 0; l < XG__LANES && whole; l += 4) XG__PREFETCH(to[l] + (size_t)i * width, area);
        XG_(store_fours)(row, to, (size_t)i * (whole ? width : 4));
    }
    for (l = 0; l < n && !whole; l++) {
        if (more != NULL) XG_(add_more)(&p->job->finish, seat + l, more + seat[l].to, width, to[l]);
        XG_(put_outputs)(to[l], seat + l, plane + seat[l].to, width, area);
    }
}

/* From the products of a plane out and a vector of patches, those of the next point `apart`, to
 * their place. */
static void XG_(answer)(const XG_(winograd) *p, size_t row, const XG_(seat) *seat, size_t n,
                        const xg_real *from, size_t apart, const XG_(bench) *d)
{
    const xg__finish *f = &p->job->finish;
    const size_t area = (size_t)p->oh * (size_t)p->ow;
    const xg_real *more = f->more != NULL ? f->more + row * area : NULL;
    XG_(both_axes)(XG__PATCH, 4, false, from, apart, d->room, XG__LANES);
    if (xg__finish_pools(f)) {
        XG_(pool_patches)(p, seat, n, row, d);
        return;
    }
    if (f->any) XG_(finish_patches)(f, row, d->room);
    XG_(put_patches)(p, seat, n, more, d, p->out + row * area);
}

/* The products of planes out [row, row + rows) and a block of patches. */
static void XG_(answer_block)(const XG_(winograd) *p, size_t row, size_t rows, size_t patches,
                              const XG_(bench) *d)
{
    size_t r, i;
    for (r = 0; r < rows; r++) {
        for (i = 0; i < patches; i += XG__LANES) {
            XG_(answer)(p, row + r, d->seat + i, xg__min(XG__LANES, patches - i),
                        d->c + r * p->c_stride + i, p->c_apart, d);
        }
    }
}

/* All points of a plane out and a panel of patches, if there are three or four planes in: as
 * multiply_points, but what so few products make stays in the first cache. */
XG__INLINE void XG_(multiply_brief)(const int planes, const XG_(winograd) *p, const xg_real *a,
                                    const xg_real *b, xg_real *to)
{
    size_t point;
    int c, j;
    for (point = 0; point < XG__POINTS; point++, a += p->a_apart, b += p->b_apart, to += XG__NR) {
        XG_(v) sum[XG__NV];
        XG__UNROLL
        for (j = 0; j < XG__NV; j++) sum[j] = XG_(set1)(0);
        XG__UNROLL
        for (c = 0; c < planes; c++) {
            const XG_(v) weight = XG_(set1)(a[c]);
            XG__UNROLL
            for (j = 0; j < XG__NV; j++) {
                sum[j] = XG_(fma)(weight, XG_(load)(b + c * XG__NR + j * XG__LANES), sum[j]);
            }
        }
        XG__UNROLL
        for (j = 0; j < XG__NV; j++) XG_(store)(to + j * XG__LANES, sum[j]);
    }
}

/* A panel of patches with all planes out. */
static void XG_(answer_brief)(const XG_(winograd) *p, size_t first, size_t patches,
                              const XG_(bench) *d)
{
    const xg_real *b = d->b + first * p->in.count;
    size_t r, i;
    for (r = 0; r < p->out_planes; r++) {
        const xg_real *a = p->team->scratch + r * p->a_stride;
        if (p->in.count == 3) XG_(multiply_brief)(3, p, a, b, d->c);
        else XG_(multiply_brief)(4, p, a, b, d->c);
        for (i = 0; i < xg__min(XG__NR, patches - first); i += XG__LANES) {
            XG_(answer)(p, r, d->seat + first + i, xg__min(XG__LANES, patches - first - i),
                        d->c + i, XG__NR, d);
        }
    }
}

/* 3.6.5 Units. */

/* What is transformed before all else: weights of a block of planes out, or 16 planes of a block of
 * patches. */
static void XG_(winograd_first)(const void *plan, size_t number, int worker)
{
    const XG_(winograd) *p = (const XG_(winograd) *)plan;
    const XG_(bench) d = XG_(bench_of)(p, worker);
    if (p->few) {
        const size_t groups = XG_(ceil_div)(p->in.count, 16), block = number / groups;
        const size_t plane = number % groups * 16, end = xg__min(plane + 16, p->in.count);
        XG_(see_planes)(p, XG_(block)(&p->patches, block), plane, end, &d,
                        p->team->scratch + block * p->b_block);
    } else {
        const XG_(span) rows = XG_(block)(&p->rows, number);
        XG_(see_all_weights)(p, rows.minor, rows.minors, &d,
                         p->team->scratch + rows.minor * p->a_stride);
    }
}

/* A block of patches with all planes out. */
static void XG_(unit_of_patches)(const void *plan, size_t number, int worker)
{
    const XG_(winograd) *p = (const XG_(winograd) *)plan;
    const XG_(bench) d = XG_(bench_of)(p, worker);
    const XG_(span) patches = XG_(block)(&p->patches, number);
    size_t i;
    XG_(see_planes)(p, patches, 0, p->in.count, &d, d.b);
    if (p->brief) {
        for (i = 0; i < patches.minors; i += XG__NR) XG_(answer_brief)(p, i, patches.minors, &d);
        return;
    }
    for (i = 0; i < p->rows.blocks; i++) {
        const XG_(span) rows = XG_(block)(&p->rows, i);
        XG_(multiply_points)(p, rows.minors, patches.minors,
                             p->team->scratch + rows.minor * p->a_stride, d.b, &d);
        XG_(answer_block)(p, rows.minor, rows.minors, patches.minors, &d);
    }
}

/* A block of planes out with all patches. */
static void XG_(unit_of_planes)(const void *plan, size_t number, int worker)
{
    const XG_(winograd) *p = (const XG_(winograd) *)plan;
    const XG_(bench) d = XG_(bench_of)(p, worker);
    const XG_(span) rows = XG_(block)(&p->rows, number);
    size_t i;
    XG_(see_all_weights)(p, rows.minor, rows.minors, &d, d.a);
    for (i = 0; i < p->patches.blocks; i++) {
        const XG_(span) patches = XG_(block)(&p->patches, i);
        XG_(find_seats)(p, patches, &d);
        XG_(multiply_points)(p, rows.minors, patches.minors, d.a,
                             p->team->scratch + i * p->b_block, &d);
        XG_(answer_block)(p, rows.minor, rows.minors, patches.minors, &d);
    }
}

/* Weight gradient: the stretch's patches of some planes of x, to panels of columns; or of a plane
 * of g, to a row. */
static void XG_(unit_of_stretch)(const void *plan, size_t number, int worker)
{
    const XG_(winograd) *p = (const XG_(winograd) *)plan;
    const XG_(bench) d = XG_(bench_of)(p, worker);
    const XG_(span) patches = XG_(block)(&p->k, p->stretch);
    const size_t panels = XG_(ceil_div)(p->in.count, XG__NR);
    const size_t panel = XG_(longest)(&p->k) * XG__NR, plane = number - panels;
    if (number < panels) {
        XG_(see_patches)(p, patches, number * XG__NR, &d,
                         p->team->scratch + p->at_b + number * panel);
        return;
    }
    XG_(find_seats)(p, patches, &d);
    if (p->ow % 4 != 0) XG_(clear_lines)(p, &d);
    XG_(see_plane)(4, p, &p->g, plane, patches.minors, XG_(find_swaths)(p, &p->g, patches, &d), &d,
                   p->team->scratch + plane * p->a_stride, XG__NR, p->a_apart);
}

/* Its products at one point, for a block of rows. */
static void XG_(multiply_stretch)(const XG_(winograd) *p, size_t point, XG_(span) rows, xg_real *c,
                                  const XG_(bench) *d)
{
    XG_(product) product;
    memset(&product, 0, sizeof product);
    product.rows = rows.minors;
    product.columns = p->in.count;
    product.k = XG_(block)(&p->k, p->stretch).minors;
    product.a = p->team->scratch + point * p->a_apart + rows.minor * p->a_stride;
    product.a_stride = p->a_stride;
    product.b = p->team->scratch + p->at_b + point * p->b_apart;
    product.panel = XG_(longest)(&p->k) * XG__NR;
    product.step = d->step;
    product.c = c;
    product.c_stride = p->c_stride;
    product.first = p->stretch == 0;
    product.exact = false;
    XG_(multiply)(&product, d->room);
}

static void XG_(unit_of_point)(const void *plan, size_t number, int worker)
{
    const XG_(winograd) *p = (const XG_(winograd) *)plan;
    const XG_(bench) d = XG_(bench_of)(p, worker);
    const XG_(span) rows = XG_(block)(&p->rows, number / XG__POINTS);
    const size_t point = number % XG__POINTS;
    XG_(multiply_stretch)(p, point, rows, p->team->scratch + p->at_c + point * p->c_apart
                          + rows.minor * p->c_stride, &d);
}

/* From products to a row of 3x3 weights' gradients. */
static void XG_(answer_weights)(const XG_(winograd) *p, size_t row, const xg_real *from,
                                const XG_(bench) *d)
{
    xg_real *to = p->out + row * p->out_step, *turned = d->room + 16 * XG__LANES;
    size_t c, l, t;
    for (c = 0; c < p->in.count; c += XG__LANES) {
        const size_t n = xg__min(XG__LANES, p->in.count - c);
        XG_(both_axes)(XG__PATCH, 3, false, from + c, p->c_apart, d->room, XG__LANES);
        for (t = 0; t < 9; t += XG__LANES) {
            XG_(transpose)(d->room + t * XG__LANES, XG__LANES, turned + t, 16);
        }
        for (l = 0; l < n; l++, to += 9) XG_(put_run)(turned + 16 * l, to, 9, p->job->add);
    }
}

/* After the last stretch: a row. */
static void XG_(unit_of_answers)(const void *plan, size_t row, int worker)
{
    const XG_(winograd) *p = (const XG_(winograd) *)plan;
    const XG_(bench) d = XG_(bench_of)(p, worker);
    XG_(answer_weights)(p, row, p->team->scratch + p->at_c + row * p->c_stride, &d);
}

/* If there is one stretch only: all points of a block of rows, whose products stay in the cache. */
static void XG_(unit_of_rows)(const void *plan, size_t number, int worker)
{
    const XG_(winograd) *p = (const XG_(winograd) *)plan;
    const XG_(bench) d = XG_(bench_of)(p, worker);
    const XG_(span) rows = XG_(block)(&p->rows, number);
    size_t i;
    for (i = 0; i < XG__POINTS; i++) {
        XG_(multiply_stretch)(p, i, rows, d.c + i * p->c_apart, &d);
    }
    for (i = 0; i < rows.minors; i++) {
        XG_(answer_weights)(p, rows.minor + i, d.c + i * p->c_stride, &d);
    }
}

static void XG_(run_winograd_dw)(XG_(winograd) *p)
{
    const size_t panels = XG_(ceil_div)(p->in.count, XG__NR);
    for (p->stretch = 0; p->stretch < p->k.blocks; p->stretch++) {
        XG_(run_units)(p->team, p, panels + p->out_planes, XG_(unit_of_stretch));
        if (p->few) XG_(run_units)(p->team, p, p->rows.blocks, XG_(unit_of_rows));
        else XG_(run_units)(p->team, p, XG__POINTS * p->rows.blocks, XG_(unit_of_point));
    }
    if (!p->few) XG_(run_units)(p->team, p, p->out_planes, XG_(unit_of_answers));
}

static void XG_(run_winograd)(XG_(winograd) *p, const xg__team *team)
{
    p->team = team;
    if (p->job->kind == XG__CONV_DW) {
        XG_(run_winograd_dw)(p);
    } else if (p->few) {
        XG_(run_units)(p->team, p, p->patches.blocks * XG_(ceil_div)(p->in.count, 16),
                       XG_(winograd_first));
        XG_(run_units)(p->team, p, p->rows.blocks, XG_(unit_of_planes));
    } else {
        XG_(run_units)(p->team, p, p->rows.blocks, XG_(winograd_first));
        XG_(run_units)(p->team, p, p->patches.blocks, XG_(unit_of_patches));
    }
}

/* 3.6.6 The two of the table. */

XG__INLINE bool XG_(is_pooled)(const xg__conv_job *job)
{
    return job->kind == XG__CONV_DW && job->at != NULL;
}

static size_t XG_(conv_scratch)(const xg__conv_job *job, int workers)
{
    XG_(winograd) plan;
    if (XG_(is_pooled)(job)) return XG_(pooled_scratch)(job, workers);
    if (!job->winograd) return XG_(direct_scratch)(job, workers);
    XG_(plan_winograd)(&plan, job, workers);
    return plan.shared * sizeof(xg_real) + (size_t)workers * plan.desk;
}

static void XG_(conv)(const xg__conv_job *job, const xg__team *team)
{
    XG_(winograd) plan;
    if (XG_(is_pooled)(job)) {
        XG_(run_pooled)(job, team);
        return;
    }
    if (!job->winograd) {
        XG_(direct)(job, team);
        return;
    }
    XG_(plan_winograd)(&plan, job, team->workers);
    XG_(run_winograd)(&plan, team);
}

#undef XG__PATCH
#undef XG__POINTS
#undef XG__FEW
#undef XG__STRETCH
#undef XG__P
#undef XG__Q
#undef XG__PP
#undef XG__QQ
#undef XG__ZERO_SHARE
#undef XG__P_SHARE
#undef XG__Q_SHARE

#undef XG__CHAINS
#undef XG__BAND
#undef XG__FAR
#undef XG__NR
#undef XG__ROOM
#undef XG__BLOCK_K
#undef XG__BLOCK_ROWS
#undef XG__BLOCK_ROWS_ACROSS
#undef XG__BLOCK_COLS_ACROSS
#undef XG__BLOCK_COLS
#undef XG__BLOCK_COLS_STAGED
#undef XG__BLOCK_PARTS
#undef XG__BLOCK_AREA
#undef XG__STRIP
#undef XG__STRIP_O

/* 3.7 The table of this level, and the end of its pass. */

static const xg__kernels XG_(kernels) = {
    XG__TEXT(XG__LEVEL),
    {
#define X(name) XG_(map_##name),
        XG__MAPS(X)
#undef X
    },
    {
#define X(name) XG_(zip_##name),
        XG__ZIPS(X)
#undef X
    },
    XG_(sum_lanes),
    XG_(sum_each),
    XG_(square_lanes),
    XG_(check),
    { XG_(update_plain), XG_(update_momentum), XG_(update_adam) },
    XG_(avgpool),
    XG_(argpool),
    XG_(pick_pairs),
    XG_(place_pairs),
    XG_(gemm_scratch),
    XG_(gemm_packed),
    XG_(gemm),
    XG_(conv_scratch),
    XG_(conv)
};

#undef XG_
#undef XG__LANES
#undef XG__MR
#undef XG__NV
#undef XG__MAP
#undef XG__ZIP
#undef XG__ZIP_ROW
#undef XG__ROUNDER
#undef XG__LN2_HIGH
#undef XG__LN2_LOW
#undef XG__LOG2_E
#undef XG__PASS
#endif /* the kernels */

#if defined(XG_IMPLEMENTATION) && !defined(XG__LEVEL) && !defined(XG__BUILT)
#define XG__BUILT

/* ============================================================================================== *
 *  [4] tape                                                                                      *
 * ============================================================================================== */

/* 4.1 What stands on the tape. */

/* The numbers of an operation; each room says which it uses. */
typedef union xg__attr {
    struct { double p, q; } number;                       /* pow, affine, clamp, within */
    struct { xg_shape shape; } to;                        /* sum_to, expand, reshape, max_to, ... */
    struct { xg_shape from, shape; } box;                 /* slice, pad */
    struct {                                              /* the trio, pools */
        xg_window window;
        xg_shape shape;                                   /* of dx and dw */
        bool waits;                                       /* until its numbers are asked for, ... */
        const xg__finish *finish;                         /* ... which this is done to (4.6.3) */
    } conv;
    struct { int order[4]; } axes;                        /* permute; flip: 1 for reversed */
    struct { int value; } one;                            /* concat: axis; topk_threshold: k */
    struct { bool a, b; } transpose;                      /* matmul */
} xg__attr;

struct xg_tensor {
    xg_tape   *tape;
    xg_tensor *prev, *next;      /* neighbours in order of creation: operands always come earlier */
    xg_tensor *in[2];
    xg_real   *data;             /* NULL while a result waits to be asked for (4.6) */
    xg_shape   shape;
    xg_op      op;
    int        id;               /* position on the tape */
    int        depth;            /* operations that wait in a chain, this one included; or 0 */
    bool       awaited;          /* an operand of something that waited when it was made */
    bool       fixed;            /* its numbers stay where they are: shared, or handed out */
    bool       passing;          /* made by a sweep whose inner results nobody else can see (4.8) */
    bool       cheap;            /* its numbers are quickly made again */
    bool       adds;             /* to the numbers of what it took the place of (6.1) */
    bool       hub;              /* several paths meet here: computed once, for all who read it */
    bool       borrowed;         /* a leaf whose numbers are the caller's: never written */
    bool       constant;         /* made under xg_no_grad: no gradient passes */
    int        holds;            /* of what passes: those who still need it */
    int        reads;            /* weights: products that packed them themselves (4.12) */
    unsigned   born, given;      /* the arena's marks when it, and its numbers, were made */
    xg_tensor *sum;              /* the latest that waits for the sum of this one, or NULL */
    xg_tensor *older;            /* of those that are known by what they are made of (4.7) */
    unsigned   seen;             /* scratch of a search */
    xg__attr   attr;
    const char *name;            /* "" when it has none */
    struct { int number, axis; bool leads; xg_tensor *first, *second; } walk;   /* of a reading */
    struct { xg_tensor *cotangent, *part[2]; bool root, apart; } past;   /* of the last gradient */
    xg_tensor *part_of;          /* the node whose past.part[0] this product is, or NULL (6.1.2) */
    struct { xg_tensor *base, *factor; int axis; } like;  /* base times a factor; or base is NULL */
};

/* A name given to a tensor. Owner NULL: by xg_name; otherwise a parameter store, for its leaves. */
typedef struct xg__name {
    struct xg__name *older;      /* the one given just before, of any name */
    struct xg__name *below;      /* the next older one in the same bucket */
    xg_tensor  *tensor;
    const void *owner;
    const char *text;
    uint32_t    hash;
} xg__name;

/* A running statistic that waits for its training step to succeed. */
typedef struct xg__update {
    struct xg__update *older, *newer;
    xg_tensor *running;          /* the leaf of what moves ... */
    xg_real   *target;           /* ... and its numbers, the store's; NULL once they have moved */
    xg_tensor *value;
    double     momentum;
} xg__update;

/* Numbers that a tensor got after its creation: a release to before that takes them back. */
typedef struct xg__change {
    struct xg__change *older;
    xg_tensor *tensor;
    xg_real   *before;
    unsigned   given;
} xg__change;

/* Weights as products pack them that sum along their rows, or along their columns (4.12). */
typedef struct xg__kept {
    struct xg__kept *older;
    const xg_tensor *of;
    bool             along_k;
    xg__packed       packed;     /* without numbers, if they were given up */
    xg__place        place;      /* of the arena for packed weights, before these */
} xg__kept;

enum { XG__READS = 4, XG__BUCKETS = 256, XG__KNOWN = 256, XG__MAX_WORKERS = 256, XG__RECENT = 3 };

struct xg_tape {
    xg__arena          arena;
    xg__arena          packs;              /* of packed weights: given up where memory runs out */
    xg__place          start;              /* of the first, behind this struct */
    const xg__kernels *kernels;
    xg_config          config;
    xg_error           error;
    xg_tensor         *first, *last;
    int                count;
    int                walks;              /* readings so far; numbers them */
    unsigned           searches;           /* the same of searches */
    bool               last_sweep;         /* what is made now, only the sweep can see (4.8) */
    xg_tensor         *onto;               /* ... and a product may be added to this */
    int                open;               /* ... and what is made from this number on, its rule */
    xg_tensor         *recent[XG__RECENT]; /* cheap results that were read lately (4.8) */
    xg_stats           counts;             /* of what was computed; the rest is asked for */
    xg_tensor         *root;               /* of the last sweep from one number a sample (6.1.2) */
    bool               joins;              /* this sweep passes it */
    bool               no_grad;            /* what is made now is constant */
    xg_tensor         *known[XG__KNOWN];    /* products by what they are made of (4.7) */
    xg__name          *names;              /* the latest */
    xg__name          *bucket[XG__BUCKETS];
    xg__update        *updates;            /* the latest */
    xg__change        *changes;            /* the latest */
    xg__kept          *kept;               /* the latest */
    xg_tensor          poison;
    xg_real            nan;                /* what poison reads as */
};

/* LATER: waits until somebody asks for its numbers: pointwise or a sum (4.6), or with a run of its
 * own, which asks for its operands' numbers. NOW: runs at once. VIEW: has those of its operand. */
typedef enum xg__manner {
    XG__LATER_MAP, XG__LATER_ZIP, XG__LATER_SUM, XG__LATER_OWN, XG__NOW, XG__VIEW
} xg__manner;

/* What the tape knows of an operation; the table of rooms stands at the end of [5]. */
typedef struct xg__room {
    const char *name, *formula;
    int    operands;
    bool (*shape)(xg_tensor *y);    /* sets y->shape, or refuses */
    void (*run)(xg_tensor *y);      /* fills y->data; NULL where a kernel below does, or nobody */
    xg__manner manner;
    int    kernel;                  /* of LATER_MAP and LATER_ZIP: its index among the kernels */
    xg_vjp vjp;                     /* NULL: piecewise constant */
} xg__room;

static const xg__room *xg__room_of(xg_op op);

/* A convolution with many outputs, each quickly made, runs when it is asked for: if a pool asks, it
 * need never be in memory as a whole (5.6). */
static bool xg__waits_for_pool(const xg_tensor *y);

/* Gives the operands of y the numbers that its run reads. */
static bool xg__force_operands(const xg_tensor *y);

/* 4.2 Errors: the first one stays. */

XG_API_DEF bool xg_failed(const xg_tape *tape)
{
    return !tape || tape->error.code != XG_ERR_OK;
}

static const xg_error xg__no_tape = {
    XG_ERR_MEMORY, "there is no tape: xg_tape_new returned NULL"
};

XG_API_DEF const xg_error *xg_tape_error(const xg_tape *tape)
{
    return tape ? &tape->error : &xg__no_tape;
}

XG_API_DEF void xg_clear_error(xg_tape *tape)
{
    if (tape) memset(&tape->error, 0, sizeof tape->error);
}

static void xg__set_error(xg_error *error, xg_code code, const char *format, va_list arguments)
{
    if (error->code != XG_ERR_OK) return;
    error->code = code;
    vsnprintf(error->text, sizeof error->text, format, arguments);
}

/* For stores and files. */
static void xg__complain(xg_error *error, xg_code code, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    xg__set_error(error, code, format, arguments);
    va_end(arguments);
}

XG_API_DEF void xg_fail(xg_tape *tape, xg_code code, const char *format, ...)
{
    if (!tape) return;
    va_list arguments;
    va_start(arguments, format);
    xg__set_error(&tape->error, code, format, arguments);
    va_end(arguments);
}

/* What operations return once something failed: one NaN, and every later operation lands here too.
 * The tapeless one serves callers who went on after xg_tape_new returned NULL. Never written. */
static xg_tensor *xg__poison(xg_tape *tape)
{
    static const xg_tensor tapeless = XG__ZEROS;
    return tape ? &tape->poison : (xg_tensor *)(uintptr_t)&tapeless;
}

static bool xg__is_poison(const xg_tensor *x)
{
    return !x || !x->tape || x == &x->tape->poison;
}

/* "x 'layer2' [8 64 28 28]" appended to text: operands describe themselves in every error. */
static void xg__describe(char *text, size_t size, const char *label, const xg_tensor *x)
{
    size_t used = strlen(text);
    xg_shape s = x->shape;
    bool named = x->name[0];
    snprintf(text + used, size - used, "%s %s%s%s[%d %d %d %d]", label, named ? "'" : "", x->name,
             named ? "' " : "", s.n, s.c, s.h, s.w);
}

/* Fails an operation: "conv2d: channels differ: x 'layer2' [8 64 28 28], with [128 32 3 3]". */
static bool xg__refuse(const xg_tensor *y, xg_code code, const char *why)
{
    char operands[160] = "";
    if (y->in[0]) xg__describe(operands, sizeof operands, ": x", y->in[0]);
    if (y->in[1]) xg__describe(operands, sizeof operands, ", with", y->in[1]);
    xg_fail(y->tape, code, "%s: %.60s%s", xg__room_of(y->op)->name, why, operands);
    return false;
}

/* 4.3 The tape itself. */

/* The default parallel_for; `user` is the number of OpenMP's threads. */
static void xg__default_for(void *user, int tasks, void (*run)(void *, int, int), void *context)
{
    int workers = (int)(uintptr_t)user;
    (void)workers;
#ifdef _OPENMP
#pragma omp parallel for schedule(dynamic) num_threads(workers)
    for (int task = 0; task < tasks; task++) run(context, task, omp_get_thread_num());
#else
    for (int task = 0; task < tasks; task++) run(context, task, 0);
#endif
}

static void xg__config_defaults(xg_config *config)
{
    bool ours = !config->parallel_for;
#ifdef _OPENMP
    if (ours && config->workers < 1) config->workers = omp_get_max_threads();
    if (ours && config->workers > XG__MAX_WORKERS) config->workers = XG__MAX_WORKERS;
#else
    if (ours) config->workers = 1;
#endif
    if (config->workers < 1) config->workers = 1;
    if (ours) {
        config->parallel_for = xg__default_for;
        config->parallel_user = (void *)(uintptr_t)config->workers;
    }
}

XG_API_DEF xg_tape *xg_tape_new(const xg_config *config)
{
    xg_config chosen = XG__ZEROS;
    if (config) chosen = *config;
    xg__config_defaults(&chosen);
    const xg__kernels *kernels = xg__kernels_find(chosen.simd);
    if (!kernels) return NULL;

    xg__arena arena = xg__arena_open(&chosen);     /* the tape lives in its own arena */
    xg_tape *tape = (xg_tape *)xg__arena_take(&arena, sizeof *tape);
    if (!tape) { xg__arena_close(arena); return NULL; }
    memset(tape, 0, sizeof *tape);
    tape->arena = arena;
    tape->packs = xg__arena_open(&chosen);
    tape->packs.first = NULL;                      /* a caller's buffer is not spent on them */
    tape->packs.reserved = 0;
    tape->start = xg__arena_place(&arena);
    tape->kernels = kernels;
    tape->config = chosen;
    tape->nan = (xg_real)NAN;
    tape->poison.tape = tape;
    tape->poison.shape = xg_shape4(1, 1, 1, 1);
    tape->poison.data = &tape->nan;
    tape->poison.name = "";
    tape->poison.id = -1;
    tape->poison.fixed = true;
    tape->open = INT_MAX;
    return tape;
}

XG_API_DEF void xg_tape_free(xg_tape *tape)
{
    if (!tape) return;
    xg__arena_close(tape->packs);
    xg__arena_close(tape->arena);
}

XG_API_DEF xg_mark xg_tape_mark(xg_tape *tape)
{
    xg_mark mark = XG__ZEROS;
    if (!tape) return mark;
    mark.place = xg__arena_mark(&tape->arena);
    mark.last = tape->last;
    mark.names = tape->names;
    mark.updates = tape->updates;
    mark.changes = tape->changes;
    mark.kept = tape->kept;
    return mark;
}

/* Everything made since then is gone. */
static void xg__tape_rewind(xg_tape *tape, xg_mark mark, bool keep_mark)
{
    while (tape->names && (void *)tape->names != mark.names) {
        xg__name *name = tape->names;
        if (name->tensor->name == name->text) name->tensor->name = "";
        tape->bucket[name->hash % XG__BUCKETS] = name->below;
        tape->names = name->older;
    }
    /* What was made before the mark but forced after it goes back to waiting. */
    for (; tape->changes && (void *)tape->changes != mark.changes;
         tape->changes = tape->changes->older) {
        tape->changes->tensor->data = tape->changes->before;
        tape->changes->tensor->given = tape->changes->given;
    }
    for (; tape->kept && (void *)tape->kept != mark.kept; tape->kept = tape->kept->older) {
        if (tape->kept->packed.data) xg__arena_release(&tape->packs, tape->kept->place);
    }
    tape->updates = (xg__update *)mark.updates;
    if (tape->updates) tape->updates->newer = NULL;
    memset(tape->recent, 0, sizeof tape->recent);
    tape->last = mark.last;
    if (mark.last) mark.last->next = NULL;
    else tape->first = NULL;
    tape->count = mark.last ? mark.last->id + 1 : 0;
    if (tape->root && tape->root->id >= tape->count) tape->root = NULL;
    for (int i = 0; i < XG__KNOWN; i++) {
        xg_tensor **known = &tape->known[i];
        while (*known && (*known)->id >= tape->count) *known = (*known)->older;
    }
    xg__arena_rewind(&tape->arena, mark.place, keep_mark);
}

XG_API_DEF void xg_tape_release(xg_tape *tape, xg_mark mark)
{
    if (tape) xg__tape_rewind(tape, mark, true);
}

XG_API_DEF void xg_tape_reset(xg_tape *tape)
{
    if (!tape) return;
    xg_mark start = XG__ZEROS;
    start.place = tape->start;
    xg__tape_rewind(tape, start, false);
    xg_clear_error(tape);
}

XG_API_DEF xg_stats xg_tape_stats(const xg_tape *tape)
{
    xg_stats stats = XG__ZEROS;
    if (!tape) return stats;
    stats = tape->counts;
    stats.bytes = tape->arena.bytes + tape->packs.bytes;
    stats.peak = tape->arena.peak + tape->packs.peak;
    stats.reserved = tape->arena.reserved + tape->packs.reserved;
    stats.nodes = (size_t)tape->count;
    return stats;
}

XG_API_DEF const char *xg_tape_simd(const xg_tape *tape)
{
    return tape ? tape->kernels->name : "none";
}

XG_API_DEF bool xg_no_grad(xg_tape *tape, bool on)
{
    if (!tape) return false;
    bool before = tape->no_grad;
    tape->no_grad = on;
    return before;
}

/* Gives the memory of packed weights (4.12) back to the allocator; false if there is none. */
static bool xg__give_up_packed(xg_tape *tape)
{
    const xg__place empty = XG__ZEROS;
    if (!tape->packs.first) return false;
    xg__arena_release(&tape->packs, empty);
    xg__arena_close(tape->packs);
    tape->packs.first = NULL;
    tape->packs.reserved = 0;
    for (xg__kept *kept = tape->kept; kept; kept = kept->older) {
        kept->packed.data = NULL;
        kept->packed.made = false;
    }
    return true;
}

/* Memory that was just taken, if there was any, or if packed weights can be given up for it. */
static void *xg__took(xg_tape *tape, void *memory, size_t bytes)
{
    if (!memory && xg__give_up_packed(tape)) memory = xg__arena_take(&tape->arena, bytes);
    if (!memory) {
        xg_fail(tape, XG_ERR_MEMORY, "out of memory: %.1f MB more on top of %.1f MB in use; use a "
                "smaller batch, or release the tape between steps",
                (double)bytes / 1e6, (double)tape->arena.bytes / 1e6);
    }
    return memory;
}

static void *xg__take(xg_tape *tape, size_t bytes)
{
    return xg__took(tape, xg__arena_take(&tape->arena, bytes), bytes);
}

/* 4.4 Threads. One dispatcher: every kernel is a serial function over a range of units. */

typedef void (*xg__range)(const void *job, size_t begin, size_t end, int worker);

typedef struct xg__range_job {
    xg__range run;
    const void *job;
    size_t units, share;
} xg__range_job;

static void xg__range_task(void *context, int task, int worker)
{
    const xg__range_job *range = (const xg__range_job *)context;
    size_t begin = (size_t)task * range->share;
    size_t end = begin + range->share;
    range->run(range->job, begin, end < range->units ? end : range->units, worker);
}

enum { XG__START = 256 };       /* what beginning a row costs, in elementary steps */

/* Runs run(job, begin, end, worker) over [0, units). `cost` is the work of a unit in elementary
 * steps: what is cheaper than waking a thread is not divided. With four tasks a worker, a slow core
 * is helped. */
static void xg__share_out(xg_tape *tape, size_t units, size_t cost, xg__range run, const void *job)
{
    const size_t worth = 32768;
    size_t pieces = (size_t)tape->config.workers * 4;
    size_t most = units * (cost ? cost : 1) / worth;
    if (pieces > most) pieces = most;
    if (pieces > units) pieces = units;
    if (tape->config.workers == 1 || pieces < 2) {
        if (units) run(job, 0, units, 0);
        return;
    }
    const size_t share = (units + pieces - 1) / pieces;
    int tasks = (int)((units + share - 1) / share);
    xg__range_job range = { run, job, units, share };
    tape->config.parallel_for(tape->config.parallel_user, tasks, xg__range_task, &range);
}

/* The same for those who do not care which worker they are. */
typedef struct xg__plain_job {
    void (*run)(const void *job, size_t begin, size_t end);
    const void *job;
} xg__plain_job;

static void xg__plain_range(const void *job, size_t begin, size_t end, int worker)
{
    const xg__plain_job *plain = (const xg__plain_job *)job;
    (void)worker;
    plain->run(plain->job, begin, end);
}

static void xg__parallel(xg_tape *tape, size_t units, size_t cost,
                         void (*run)(const void *job, size_t begin, size_t end), const void *job)
{
    const xg__plain_job plain = { run, job };
    xg__share_out(tape, units, cost, xg__plain_range, &plain);
}

/* The team for a kernel that divides its own work, with scratch until the next release. */
static bool xg__team_open(xg_tape *tape, size_t scratch_bytes, xg__team *team)
{
    team->workers = tape->config.workers;
    team->parallel = tape->config.parallel_for;
    team->user = tape->config.parallel_user;
    team->scratch = (xg_real *)xg__take(tape, scratch_bytes);
    return team->scratch != NULL;
}

/* 4.5 What is recorded. */

static bool xg__shape_valid(xg_shape s)
{
    size_t size = xg_shape_size(s);
    return size > 0 && size < SIZE_MAX / 4 / sizeof(xg_real) && (double)size < 9e15;
}

static xg_real *xg__take_many(xg_tape *tape, size_t count)
{
    size_t bytes = count * sizeof(xg_real);
    return (xg_real *)xg__took(tape, xg__arena_take_any(&tape->arena, bytes), bytes);
}

/* Gives so many numbers back; they were taken after the last mark. */
static void xg__give_many(xg_tape *tape, xg_real *data, size_t count)
{
    xg__arena_give(&tape->arena, data, count * sizeof *data);
}

static xg_real *xg__take_numbers(const xg_tensor *y)
{
    return xg__take_many(y->tape, xg_shape_size(y->shape));
}

/* Copies a finished description to the tape, with memory for its numbers unless it shares some or
 * waits. */
static xg_tensor *xg__record(const xg_tensor *description, bool waits)
{
    xg_tape *tape = description->tape;
    xg_tensor *y = (xg_tensor *)xg__take(tape, sizeof *y);
    if (!y) return NULL;
    *y = *description;
    y->fixed = y->data != NULL;
    if (!y->data && !waits) {
        y->data = xg__take_numbers(y);
        if (!y->data) return NULL;
    }
    y->born = y->given = tape->arena.marks;
    y->passing = tape->last_sweep;
    y->id = tape->count++;
    y->name = "";
    y->prev = tape->last;
    y->next = NULL;
    if (tape->last) tape->last->next = y;
    else tape->first = y;
    tape->last = y;
    return y;
}

/* 4.6 Pointwise operations and sums wait until somebody asks for their numbers. Then what waits
 *     below the one asked for runs at once, as a program. Batch norm in training, for example:
 *
 *         x --------- sum --> mean --.                              sweep 0
 *         x ---------------- sub ----+-- square -- sum --> scale    sweep 1
 *         x ---------------- sub ---- mul(scale) -- relu --> y      sweep 2
 *
 *     The sums leave one number a channel, so channels do not meet, and a worker takes one after
 *     the other: its numbers come from memory once and stay in the cache for all sweeps. What has
 *     such numbers in common is a unit, here a channel, elsewhere a sample. Within a sweep, chunks
 *     of rows pass through the steps one by one in the first-level cache, and only y is stored (and
 *     what a later sweep of the unit would have to make again at length). A chain of ten operations
 *     reads its sources once, and what nobody asks for costs neither time nor memory. Each step
 *     runs its own kernel on each number: the bits are those of one operation after the other. */

enum {
    XG__CHUNK = 1024,           /* numbers that are worked on at once; a multiple of 16 */
    XG__STEPS = 104,            /* operations of a program at most */
    XG__SLOTS = 16,             /* chunks between them at most */
    XG__SWEEPS = 8,
    XG__KEPT = 4,               /* results kept from one sweep to the next, at most ... */
    XG__KEEP = 3,               /* ... and only if they take as many steps to make */
    XG__KEEP_MOST = 1 << 17,    /* ... and have at most so many numbers: the second-level cache */
    XG__BATCH = 2048,           /* numbers of small units that are taken together, at most ... */
    XG__BATCH_MOST = 64,        /* ... of so many units */
    XG__FETCH = 128,            /* numbers that are fetched together */
    XG__SUMS = 8,               /* of one sweep at most, and that join a program */
    XG__DEPTH = 256,            /* a chain this long does not wait to be asked */
    XG__SOURCES = XG__STEPS + 2,/* a step has two operands: one more than there are steps */
    XG__PLACES = XG__STEPS + XG__SOURCES
};

/* ROWS: numbers of the whole extents. ONE: one a unit. SUM: the same, from rows. */
typedef enum xg__part { XG__ROWS, XG__ONE, XG__SUM, XG__SOURCE } xg__part;

/* An operand is known by its place: that of a step is its number, sources come behind all steps. */
typedef struct xg__step {
    xg_tensor *node;
    xg__part   part;
    bool       inner;           /* ONE for all its rows, which are alike: the node is not settled */
    int        operands, from[2];
    xg__map_row map;            /* how it is computed; NULL of pairs and sums */
    xg__zip_row zip;
    xg_real    p, q;
    int        sweep;           /* the earliest that can run it; of sums, that gives it */
    int        weight;          /* of ROWS, steps that it takes to make it from sources */
    int        keep;            /* where it is kept for later sweeps of the unit; -1: nowhere */
    xg_real   *value;           /* of ONE and SUM, their numbers */
} xg__step;

/* What is to be done with the rows of a unit: steps in order, each with a slot for its chunk, and
 * sums of what they made. */
typedef struct xg__sweep {
    int count, sums, uses, reads, ones;
    int turn;                   /* of its first step, among those of all sweeps */
    bool runs[XG__STEPS];
    int step[XG__STEPS], slot[XG__STEPS];
    int sum[XG__SUMS];
    int use[XG__SOURCES], packed[XG__SOURCES];            /* sources, and slots to pack them in */
    int read[XG__STEPS];        /* steps that run elsewhere */
    int one[XG__STEPS];         /* steps of one number that run before */
} xg__sweep;

/* How a tensor is walked: along the row or, if it repeats there, one number serves it. */
typedef struct xg__walker {
    xg_tensor *x;
    bool   walks;
    bool   packs;               /* rows are short, and do not follow one another in a unit */
    int    pack;                /* where packed rows are kept for all sweeps; -1: nowhere */
    const xg__sweep *packer;    /* the sweep that packs them then */
    size_t pace[4];             /* how far it moves along each axis */
} xg__walker;

typedef struct xg__program {
    xg_tensor *result;
    xg_shape   domain, unit;    /* extents of ROWS, of ONE and SUM; the same: there are none */
    xg__step   step[XG__STEPS];
    int        steps, limit;
    xg__walker source[XG__SOURCES];            /* the last stands for the result */
    int        sources, waiting;
    xg__sweep  sweep[XG__SWEEPS + 1];          /* the last is for steps of one number only */
    int        sweeps, kept, packs;
    int        turns;           /* steps and sums of all sweeps */
    int        walkers, walker[XG__SOURCES];   /* which sources walk, and the result if ROWS */
    xg_real   *keep;            /* for each worker, room for what is kept */
    size_t     row, rows, units;               /* numbers in a row, rows in a unit */
    size_t     group, piece, pieces;           /* rows, or numbers of a row, of a piece of a unit */
    size_t     batch;                          /* units that are taken together */
    int        axes;                           /* outer ones, 0 to axes - 1: ... */
    size_t     extent[4];                      /* ... how far they go */
    bool       counts_units[4];                /* ... and whether they count units, or rows */
    xg_real   *out;                            /* the result's numbers, if it is ROWS */
} xg__program;

static int xg__extent(xg_shape s, int axis)
{
    return axis == 0 ? s.n : axis == 1 ? s.c : axis == 2 ? s.h : s.w;
}

static bool xg__force(xg_tensor *x);
static void xg__retire(xg_tensor *x);

/* Gives all that are not NULL their numbers. To make some may drop others (4.8), whose turn comes
 * again then. */
static bool xg__force_all(xg_tensor *const *x, int count)
{
    for (int i = 0; i < count; i++) {
        if (!x[i] || x[i]->data) continue;
        if (!xg__force(x[i])) return false;
        i = -1;
    }
    return true;
}

/* Nobody else sees what a last sweep makes on its way: when the last who holds it lets go, its
 * memory is free (4.8). */
static void xg__end(xg_tensor *x);

/* Would the memory of x be free if it ended now? */
static bool xg__is_own(const xg_tensor *x)
{
    return x->data && !x->fixed && x->given == x->tape->arena.marks;
}

static void xg__hold(xg_tensor *x)
{
    if (x && x->passing) x->holds++;
}

static void xg__let_go(xg_tensor *x)
{
    if (x && x->passing && --x->holds == 0) xg__end(x);
}

static bool xg__is_sum(const xg_tensor *x)
{
    return xg__room_of(x->op)->manner == XG__LATER_SUM;
}

static bool xg__is_view(const xg_tensor *x) { return xg__room_of(x->op)->manner == XG__VIEW; }

/* Of what waits: has it a run of its own? A convolution may wait, too (4.6.3). */
static bool xg__runs_late(const xg_tensor *x)
{
    xg__manner manner = xg__room_of(x->op)->manner;
    return manner == XG__LATER_OWN || manner == XG__NOW;
}

/* Gives x, which waited, its numbers. If it is older than the last mark, a release will take them
 * back. */
static bool xg__settle(xg_tensor *x, xg_real *data)
{
    xg_tape *tape = x->tape;
    if (x->born != tape->arena.marks) {
        xg__change *change = (xg__change *)xg__take(tape, sizeof *change);
        if (!change) return false;
        change->tensor = x;
        change->before = x->data;
        change->given = x->given;
        change->older = tape->changes;
        tape->changes = change;
    }
    bool waited = !x->data && !xg__is_view(x);
    x->data = data;
    x->given = tape->arena.marks;
    if (xg__is_sum(x) && x->in[0]->sum == x) x->in[0]->sum = NULL;
    for (int i = 0; i < 2 && waited && x->passing; i++) xg__let_go(x->in[i]);
    return true;
}

/* What is dear to compute is computed once and kept. */
static bool xg__is_dear(xg_op op)
{
    return op == XG_OP_exp || op == XG_OP_log || op == XG_OP_pow || op == XG_OP_sigmoid ||
           op == XG_OP_tanh || op == XG_OP_softplus || op == XG_OP_div || op == XG_OP_sqrt;
}

/* 4.6.1 Building. */

/* Can sums from extents d to extents u be taken unit by unit? The innermost axis must be summed. */
static bool xg__separable(xg_shape d, xg_shape u)
{
    int axis = 3;
    while (axis > 0 && xg__extent(d, axis) == 1) axis--;
    return xg__extent(d, axis) != 1 && xg__extent(u, axis) == 1;
}

/* The first sum that x waits for (x itself, too) and that can be taken unit by unit. */
static xg_tensor *xg__find_sum(xg_tensor *x)
{
    if (!x || x->data || xg__runs_late(x) || x->seen == x->tape->searches) return NULL;
    x->seen = x->tape->searches;
    if (xg__is_sum(x)) return xg__separable(x->in[0]->shape, x->shape) ? x : NULL;
    xg_tensor *found = xg__find_sum(x->in[0]);
    return found ? found : xg__find_sum(x->in[1]);
}

static bool xg__has_units(const xg__program *p) { return !xg_shape_same(p->domain, p->unit); }

/* What x is to the program. Other extents, dear rows, and what would make it too long get their
 * numbers first and become sources. */
static xg__part xg__part_of(const xg__program *p, const xg_tensor *x)
{
    if (x != p->result && (x->data || x->hub || p->limit < 1)) return XG__SOURCE;
    if (xg__is_view(x) || xg__runs_late(x)) return XG__SOURCE;
    if (xg__is_sum(x)) {
        bool fits = xg__has_units(p) && xg_shape_same(x->shape, p->unit);
        return fits && xg_shape_same(x->in[0]->shape, p->domain) ? XG__SUM : XG__SOURCE;
    }
    if (xg_shape_same(x->shape, p->domain)) {
        return x != p->result && xg__is_dear(x->op) ? XG__SOURCE : XG__ROWS;
    }
    return xg_shape_same(x->shape, p->unit) ? XG__ONE : XG__SOURCE;
}

/* The place of x; XG__PLACES if it has none. */
static int xg__program_find(const xg__program *p, const xg_tensor *x)
{
    for (int i = 0; i < p->steps; i++) if (p->step[i].node == x) return i;
    for (int i = 0; i < p->sources; i++) if (p->source[i].x == x) return XG__STEPS + i;
    return XG__PLACES;
}

/* A source that waits is noted: it must have its numbers before the program is built again. */
static int xg__program_source(xg__program *p, xg_tensor *x)
{
    if (!x->data) p->waiting++;
    p->source[p->sources].x = x;
    return XG__STEPS + p->sources++;
}

static void xg__step_kernel(xg__step *s)
{
    const xg_tensor *x = s->node;
    const xg__room *room = xg__room_of(x->op);
    bool copies = x->op == XG_OP_expand;
    s->operands = room->operands;
    s->map = room->manner == XG__LATER_MAP ? x->tape->kernels->map[room->kernel] : NULL;
    s->zip = room->manner == XG__LATER_ZIP ? x->tape->kernels->zip[room->kernel] : NULL;
    s->p = (xg_real)(copies ? 1 : x->attr.number.p);
    s->q = (xg_real)(copies ? -0.0 : x->attr.number.q);    /* x - 0 is x, and -0 stays */
}

/* The first step that makes the same rows as the one at a place: then nobody reads that one, and
 * no sweep runs it. */
static int xg__program_first(const xg__program *p, int place)
{
    if (place >= XG__STEPS || p->step[place].part != XG__ROWS) return place;
    const xg__step *s = &p->step[place], *t = p->step;
    while (t->part != XG__ROWS || t->map != s->map || t->zip != s->zip ||
           memcmp(t->from, s->from, sizeof *t->from * (size_t)s->operands) != 0 ||
           memcmp(&t->p, &s->p, sizeof t->p) != 0 || memcmp(&t->q, &s->q, sizeof t->q) != 0) t++;
    return (int)(t - p->step);
}

static int xg__program_add(xg__program *p, xg_tensor *x);

/* Adds the operands of a step, and notes what follows from them. */
static void xg__step_operands(xg__program *p, xg__step *s)
{
    s->inner = s->part == XG__ROWS && s->node != p->result;
    for (int i = 0; i < s->operands; i++) {
        xg_tensor *in = s->node->in[i];        /* rows repeat numbers by themselves */
        while (s->part == XG__ROWS && in->op == XG_OP_expand && !in->data) in = in->in[0];
        s->from[i] = xg__program_first(p, xg__program_add(p, in));
        const xg__step *from = &p->step[s->from[i] < XG__STEPS ? s->from[i] : 0];
        bool source = s->from[i] >= XG__STEPS;
        bool one = xg__has_units(p) && xg_shape_same(in->shape, p->unit);
        s->inner = s->inner && (source ? one : from->part != XG__ROWS);
        if (source) continue;
        int ready = from->part == XG__SUM ? from->sweep + 1 : from->sweep;
        if (ready > s->sweep) s->sweep = ready;
        if (from->part == XG__ROWS) s->weight += from->weight;
    }
    if (s->inner) s->part = XG__ONE;
}

/* Adds x, with what it waits for, and returns its place. */
static int xg__program_add(xg__program *p, xg_tensor *x)
{
    int known = xg__program_find(p, x);
    if (known < XG__PLACES) return known;
    xg__step s;
    s.node = x;
    s.part = xg__part_of(p, x);
    if (s.part == XG__SOURCE) return xg__program_source(p, x);
    p->limit--;
    s.sweep = 0;
    s.weight = 1;
    s.keep = -1;
    s.value = NULL;
    xg__step_kernel(&s);
    xg__step_operands(p, &s);
    p->step[p->steps] = s;
    return p->steps++;
}

/* Sums that wait for rows which the program makes or reads anyway run with it. */
static void xg__program_join(xg__program *p)
{
    int steps = p->steps, all = steps + p->sources;
    for (int i = 0; i < all && p->steps < steps + XG__SUMS; i++) {
        const xg_tensor *x = i < steps ? p->step[i].node : p->source[i - steps].x;
        xg_tensor *sum = x->sum;
        if (!sum || sum->data || sum->in[0] != x || sum == p->result) continue;
        if (!xg_shape_same(x->shape, p->domain)) continue;
        if (!xg__has_units(p) && xg__separable(p->domain, sum->shape) && xg_size(sum) > 7) {
            p->unit = sum->shape;
        }
        if (xg__has_units(p) && xg_shape_same(sum->shape, p->unit)) {
            p->limit = 1;
            xg__program_add(p, sum);
        }
    }
}

/* Finds the rows: from the innermost axis outwards, while each source either has all of them or
 * repeats along all of them. */
static void xg__program_rows(xg__program *p)
{
    enum { UNKNOWN, WALKS, REPEATS } manner[XG__SOURCES];
    for (int i = 0; i < p->sources; i++) manner[i] = UNKNOWN;
    p->row = 1;
    for (p->axes = 4; p->axes > 0; p->axes--) {
        int axis = p->axes - 1, extent = xg__extent(p->domain, axis);
        bool fits = !xg__has_units(p) || xg__extent(p->unit, axis) == 1;
        if (extent == 1) continue;
        for (int i = 0; i < p->sources; i++) {
            bool walks = xg__extent(p->source[i].x->shape, axis) != 1;
            fits = fits && manner[i] != (walks ? REPEATS : WALKS);
        }
        if (!fits) break;
        for (int i = 0; i < p->sources; i++) {
            manner[i] = xg__extent(p->source[i].x->shape, axis) != 1 ? WALKS : REPEATS;
        }
        p->row *= (size_t)extent;
    }
    for (int i = 0; i < p->sources; i++) p->source[i].walks = manner[i] == WALKS;
}

/* Outer axes count units where these have them, and rows of a unit elsewhere. */
static void xg__program_axes(xg__program *p)
{
    p->rows = p->units = 1;
    for (int axis = 0; axis < p->axes; axis++) {
        p->extent[axis] = (size_t)xg__extent(p->domain, axis);
        p->counts_units[axis] = xg__has_units(p) && xg__extent(p->unit, axis) != 1;
        *(p->counts_units[axis] ? &p->units : &p->rows) *= p->extent[axis];
    }
}

static void xg__program_paces(const xg__program *p, xg__walker *w)
{
    size_t step = 1, dense = w->walks ? p->row : 0;
    w->packs = false;
    w->pack = -1;
    for (int axis = 3; axis >= 0; axis--) {
        size_t extent = (size_t)xg__extent(w->x->shape, axis);
        w->pace[axis] = extent == 1 ? 0 : step;
        step *= extent;
        if (axis >= p->axes || p->extent[axis] == 1 || p->counts_units[axis]) continue;
        w->packs = w->packs || (p->group > 1 && w->pace[axis] != dense);
        dense *= p->extent[axis];
    }
}

/* Cuts the rows of a unit into pieces: of a long row, or several short rows. */
static void xg__program_pieces(xg__program *p)
{
    if (p->row > XG__CHUNK / 2 || p->rows == 1) {
        size_t count = (p->row + XG__CHUNK - 1) / XG__CHUNK;
        p->group = 1;
        p->piece = ((p->row + count - 1) / count + 15) / 16 * 16;
        p->pieces = p->rows * ((p->row + p->piece - 1) / p->piece);
    } else {
        size_t most = XG__CHUNK / p->row, count = (p->rows + most - 1) / most;
        p->group = (p->rows + count - 1) / count;
        p->piece = p->row;
        p->pieces = (p->rows + p->group - 1) / p->group;
    }
}

/* Small units are taken several at once, and steps of one number run on a row of units, unless
 * what they read lies apart. */
static void xg__program_batch(xg__program *p)
{
    size_t most = p->rows * p->row < XG__BATCH ? XG__BATCH / (p->rows * p->row) : 1;
    p->batch = xg__min(most, XG__BATCH_MOST);
    for (int i = 0; i < p->steps; i++) {
        const xg__step *s = &p->step[i];
        for (int k = 0; k < s->operands && s->part == XG__ONE; k++) {
            if (s->from[k] < XG__STEPS) continue;
            const xg_tensor *x = p->source[s->from[k] - XG__STEPS].x;
            if (xg_size(x) != 1 && !xg_shape_same(x->shape, p->unit)) p->batch = 1;
        }
    }
}

/* The lowest free slot, now taken. */
static int xg__slot_take(unsigned *taken)
{
    int slot = 0;
    while (*taken >> slot & 1u) slot++;
    *taken |= 1u << slot;
    return slot;
}

/* Can rows of a unit be kept from sweep to sweep? */
static bool xg__unit_keeps(const xg__program *p)
{
    return xg__has_units(p) && p->rows * p->row <= XG__KEEP_MOST;
}

/* Is a step that an earlier sweep has made worth keeping? */
static bool xg__step_keep(xg__program *p, xg__step *s)
{
    bool worth = s->weight >= XG__KEEP && xg__unit_keeps(p) && s->node != p->result;
    if (s->keep < 0 && worth && p->kept < XG__KEPT) s->keep = p->kept++;
    return s->keep >= 0;
}

/* Lists what a sweep has to run, and counts who reads each step: from its sums and the result back
 * to what they need, as far as sources and to what is kept. */
static void xg__sweep_needs(xg__program *p, int number, int *uses)
{
    xg__sweep *sweep = &p->sweep[number];
    for (int i = 0; i < p->steps; i++) uses[i] = 0;
    for (int i = p->steps - 1; i >= 0; i--) {
        xg__step *s = &p->step[i];
        if (s->node == p->result && number == p->sweeps - 1) uses[i]++;
        bool sum = s->part == XG__SUM && s->sweep == number, made = false;
        for (int k = 0; k < number; k++) made = made || p->sweep[k].runs[i];
        sweep->runs[i] = sum;
        if (s->part == XG__ROWS && uses[i] > 0) sweep->runs[i] = !made || !xg__step_keep(p, s);
        if (sum) sweep->sum[sweep->sums++] = i;
        if (!sweep->runs[i]) continue;
        for (int k = 0; k < s->operands; k++) {
            if (s->from[k] < XG__STEPS) uses[s->from[k]]++;
        }
    }
}

/* Notes that the sweep reads a source; where rows are short it may have to be packed: once for all
 * sweeps, or in a slot of its own. */
static void xg__sweep_use(xg__program *p, xg__sweep *sweep, int source, unsigned *taken)
{
    xg__walker *w = &p->source[source];
    bool once = w->packs && xg__unit_keeps(p);
    for (int i = 0; i < sweep->uses; i++) if (sweep->use[i] == source) return;
    sweep->packed[sweep->uses] = w->packs && !once ? xg__slot_take(taken) : -1;
    sweep->use[sweep->uses++] = source;
    if (once && w->pack < 0) {
        w->pack = p->packs++;
        w->packer = sweep;
    }
}

/* Notes that the sweep reads a step; if it does not run that itself, it looks for its numbers. */
static void xg__sweep_read(const xg__program *p, xg__sweep *sweep, int step)
{
    if (p->step[step].part == XG__ROWS && sweep->runs[step]) return;
    for (int i = 0; i < sweep->reads; i++) if (sweep->read[i] == step) return;
    sweep->read[sweep->reads++] = step;
}

/* What the sweep reads comes first: sources keep their slots for the whole sweep. */
static bool xg__sweep_reads(xg__program *p, xg__sweep *sweep, unsigned *taken)
{
    for (int i = 0; i < p->steps; i++) {
        const xg__step *s = &p->step[i];
        if (!sweep->runs[i]) continue;
        for (int k = 0; k < s->operands; k++) {
            if (s->from[k] < XG__STEPS) xg__sweep_read(p, sweep, s->from[k]);
            else xg__sweep_use(p, sweep, s->from[k] - XG__STEPS, taken);
        }
        if (*taken >> XG__SLOTS) return false;
    }
    return true;
}

/* Lists a sweep's steps and gives each a slot, which is free again after the last who reads it. */
static bool xg__program_sweep(xg__program *p, int number)
{
    xg__sweep *sweep = &p->sweep[number];
    int uses[XG__STEPS], slot[XG__STEPS];
    unsigned taken = 0;
    sweep->count = sweep->sums = sweep->uses = sweep->reads = 0;
    xg__sweep_needs(p, number, uses);
    if (!xg__sweep_reads(p, sweep, &taken)) return false;
    for (int i = 0; i < p->steps; i++) {
        const xg__step *s = &p->step[i];
        if (s->part != XG__ROWS || !sweep->runs[i]) continue;
        for (int k = 0; k < s->operands; k++) {
            int from = s->from[k];
            if (from >= XG__STEPS || p->step[from].part != XG__ROWS || !sweep->runs[from]) continue;
            if (--uses[from] == 0) taken &= ~(1u << slot[from]);
        }
        slot[i] = xg__slot_take(&taken);
        sweep->slot[sweep->count] = slot[i];
        sweep->step[sweep->count++] = i;
        if (taken >> XG__SLOTS) return false;
    }
    return true;
}

/* How many sweeps there are; -1 when there are too many, or too many sums for one. */
static int xg__program_sweeps(const xg__program *p)
{
    int sweeps = 0, sums[XG__SWEEPS] = { 0 };
    for (int i = 0; i < p->steps; i++) {
        const xg__step *s = &p->step[i];
        bool result = s->node == p->result && s->part == XG__ROWS;
        if (s->part != XG__SUM && !result) continue;
        if (s->sweep >= sweeps) sweeps = s->sweep + 1;
        if (sweeps > XG__SWEEPS) return -1;
        if (s->part == XG__SUM && ++sums[s->sweep] > XG__SUMS) return -1;
    }
    return sweeps;
}

/* Lists the steps of one number: each runs before the sweep that it makes possible. */
static void xg__program_list_ones(xg__program *p)
{
    for (int i = 0; i <= p->sweeps; i++) p->sweep[i].ones = 0;
    for (int i = 0; i < p->steps; i++) {
        xg__sweep *sweep = &p->sweep[p->step[i].sweep];
        if (p->step[i].part == XG__ONE) sweep->one[sweep->ones++] = i;
    }
}

/* Lays out the sweeps; false when there is too much of anything. */
static bool xg__program_lay(xg__program *p)
{
    xg__program_rows(p);
    xg__program_axes(p);
    xg__program_pieces(p);
    xg__program_batch(p);
    p->source[p->sources].x = p->result;
    p->source[p->sources].walks = true;
    for (int i = 0; i <= p->sources; i++) xg__program_paces(p, &p->source[i]);
    p->sweeps = xg__program_sweeps(p);
    if (p->sweeps < 0) return false;
    xg__program_list_ones(p);
    p->kept = p->packs = 0;
    p->walkers = p->turns = 0;
    for (int i = 0; i < p->sources; i++) if (p->source[i].walks) p->walker[p->walkers++] = i;
    if (xg_shape_same(p->result->shape, p->domain)) p->walker[p->walkers++] = p->sources;
    for (int i = 0; i < p->sweeps; i++) {
        if (!xg__program_sweep(p, i)) return false;
        p->sweep[i].turn = p->turns;
        p->turns += p->sweep[i].count + p->sweep[i].sums;
    }
    return true;
}

/* Collects what `result` waits for, in at most `limit` steps. */
static void xg__program_collect(xg__program *p, xg_tensor *result, int limit)
{
    p->steps = p->sources = p->waiting = 0;
    p->out = NULL;
    p->result = result;
    p->limit = limit;
    p->domain = p->unit = result->shape;
    result->tape->searches++;
    xg_tensor *sum = xg__find_sum(result);
    if (sum && xg_shape_same(sum->shape, result->shape)) p->domain = sum->in[0]->shape;
    if (sum && xg_shape_same(sum->in[0]->shape, p->domain)) p->unit = sum->shape;
    xg__program_add(p, result);
    if (!p->waiting && limit > 4) xg__program_join(p);
}

/* The program of what `result` waits for. One that would be too large is built again from less. If
 * sources wait, they get their numbers first; that may settle others, so all begins anew. False
 * when there is nothing left to run, or no memory. */
static bool xg__program_open(xg__program *p, xg_tensor *result)
{
    int limit = XG__STEPS - XG__SUMS;
    while (!result->data && !xg_failed(result->tape)) {
        xg__program_collect(p, result, limit);
        if (!p->waiting && xg__program_lay(p)) return true;
        if (!p->waiting) limit /= 4;
        for (int i = 0; i < p->sources; i++) xg__force(p->source[i].x);
    }
    return false;
}

/* 4.6.2 Running. */

/* Where a row is: its number along each outer axis. */
typedef struct xg__spot { size_t number[4]; } xg__spot;

/* It is written where it stays: to copy it at once would wait for its numbers. */
static void xg__spot_at(const xg__program *p, size_t unit, size_t row, xg__spot *spot)
{
    for (int axis = 0; axis < 4; axis++) spot->number[axis] = 0;
    for (int axis = p->axes - 1; axis >= 0; axis--) {
        size_t *number = p->counts_units[axis] ? &unit : &row;
        if (p->extent[axis] == 1 || !*number) continue;
        spot->number[axis] = *number % p->extent[axis];
        *number /= p->extent[axis];
    }
}

/* The next row of the unit. */
static void xg__spot_next(const xg__program *p, xg__spot *spot)
{
    for (int axis = p->axes - 1; axis >= 0; axis--) {
        if (p->counts_units[axis]) continue;
        if (++spot->number[axis] < p->extent[axis]) return;
        spot->number[axis] = 0;
    }
}

/* How far a source's row lies from its beginning. */
XG__INLINE size_t xg__walker_at(const xg__walker *w, const xg__spot *spot)
{
    return spot->number[0] * w->pace[0] + spot->number[1] * w->pace[1]
         + spot->number[2] * w->pace[2] + spot->number[3] * w->pace[3];
}

/* Fills a row with a number. */
static void xg__repeat(const xg_tape *tape, xg_real one, xg_real *to, size_t n)
{
    tape->kernels->zip[XG__ZIP_max](&one, 0, &one, 0, to, n);    /* of it and itself */
}

/* How far the same piece of the next unit is fetched: stretch by stretch of its rows, each of all
 * walkers one after the other. */
typedef struct xg__ahead {
    size_t   done, all;                        /* stretches */
    int      walker;                           /* what comes next: of whom, */
    size_t   row, first;                       /* of a row so long, from this number on, */
    xg__spot spot;                             /* and where that row is */
} xg__ahead;

/* A piece on its way through a sweep. */
typedef struct xg__piece {
    size_t unit, row, rows, at, n;             /* rows of it, numbers from `at` on; n in all */
    xg__spot spot;                             /* of its first row */
    xg__ahead ahead;
    const xg_real *place[XG__PLACES];          /* where the numbers of steps and sources are, */
    size_t pace[XG__PLACES];                   /* and whether they walk or repeat */
    xg_real room[XG__SLOTS + 1][XG__CHUNK];    /* the last is for a number that is summed often */
    double lane[XG__SUMS][16];                 /* of sums over the unit */
    size_t summed;                             /* numbers of the unit so far */
    xg_real *keep;                             /* room for what is kept of the unit */
} xg__piece;

/* Runs one step on n numbers of a and, if it is a pair's, b. */
static void xg__step_run(const xg__step *s, const xg_real *a, size_t pace_a, const xg_real *b,
                         size_t pace_b, xg_real *to, size_t n)
{
    if (s->zip) {
        s->zip(a, pace_a, b, pace_b, to, n);
    } else if (pace_a) {
        s->map(a, to, n, s->p, s->q);
    } else {                                   /* of one number, then repeated */
        s->map(a, to, 1, s->p, s->q);
        if (n > 1) xg__repeat(s->node->tape, to[0], to, n);
    }
}

/* What a step of one number reads, from a unit on: a number for each, or the same for all. */
static const xg_real *xg__one_place(const xg__program *p, int place, size_t unit, size_t *pace)
{
    *pace = 1;
    if (place < XG__STEPS) return p->step[place].value + unit;
    const xg__walker *w = &p->source[place - XG__STEPS];
    xg__spot spot;
    xg__spot_at(p, unit, 0, &spot);
    *pace = xg_size(w->x) != 1;
    return w->x->data + xg__walker_at(w, &spot);
}

/* Computes steps of one number, of n units. */
static void xg__program_ones(const xg__program *p, const xg__sweep *sweep, size_t unit, size_t n)
{
    for (int i = 0; i < sweep->ones; i++) {
        const xg__step *s = &p->step[sweep->one[i]];
        size_t pace_a, pace_b;
        const xg_real *a = xg__one_place(p, s->from[0], unit, &pace_a);
        const xg_real *b = xg__one_place(p, s->from[s->operands - 1], unit, &pace_b);
        xg__step_run(s, a, pace_a, b, pace_b, s->value + unit, n);
    }
}

/* Copies the rows of a source one behind the other, or repeats its number along each. */
static void xg__piece_pack(const xg__program *p, const xg__piece *c, const xg__walker *w,
                           xg_real *to)
{
    xg__spot spot = c->spot;
    for (size_t r = 0; r < c->rows; r++, to += p->row) {
        const xg_real *from = w->x->data + xg__walker_at(w, &spot);
        if (w->walks) memcpy(to, from, p->row * sizeof *to);
        else xg__repeat(p->result->tape, *from, to, p->row);
        xg__spot_next(p, &spot);
    }
}

/* The same the other way: the rows of the result go where they belong. */
static void xg__piece_deliver(const xg__program *p, const xg__piece *c, const xg_real *from)
{
    xg__spot spot = c->spot;
    for (size_t r = 0; r < c->rows; r++, from += p->row) {
        xg_real *to = p->out + xg__walker_at(&p->source[p->sources], &spot);
        memcpy(to, from, p->row * sizeof *to);
        xg__spot_next(p, &spot);
    }
}

/* Where what is kept of a unit lies, from this piece on: of steps, then of packed sources. */
static xg_real *xg__piece_kept(const xg__program *p, const xg__piece *c, int keep)
{
    return c->keep + (size_t)keep * p->rows * p->row + c->summed;
}

/* The step that makes the result. */
static const xg__step *xg__program_last(const xg__program *p)
{
    const xg__step *s = p->step;
    while (s->node != p->result) s++;
    return s;
}

static void xg__piece_load(const xg__program *p, const xg__sweep *sweep, xg__piece *c)
{
    for (int i = 0; i < sweep->uses; i++) {
        const xg__walker *w = &p->source[sweep->use[i]];
        const xg_real **place = &c->place[XG__STEPS + sweep->use[i]];
        if (w->packs) {
            xg_real *to = w->pack >= 0 ? xg__piece_kept(p, c, p->kept + w->pack)
                                       : c->room[sweep->packed[i]];
            if (w->pack < 0 || w->packer == sweep) xg__piece_pack(p, c, w, to);
            *place = to;
        } else {
            *place = w->x->data + xg__walker_at(w, &c->spot) + (w->walks ? c->at : 0);
        }
    }
    for (int i = 0; i < sweep->reads; i++) {
        const xg__step *s = &p->step[sweep->read[i]];
        c->place[sweep->read[i]] = s->part == XG__ROWS ? xg__piece_kept(p, c, s->keep)
                                                       : s->value + c->unit;
    }
}

/* Where a step puts its numbers. */
static xg_real *xg__piece_goal(const xg__program *p, xg__piece *c, const xg__step *s, int slot)
{
    const xg__walker *out = &p->source[p->sources];
    if (s->keep >= 0) return xg__piece_kept(p, c, s->keep);
    if (!p->out || s->node != p->result || out->packs) return c->room[slot];
    return p->out + xg__walker_at(out, &c->spot) + c->at;
}

/* Adds n numbers to the lanes. Number i of a unit goes to lane i % 16 however it is cut: a piece
 * that is no multiple of 16 long is followed by one that starts in the next lane. */
static void xg__sum_numbers(const xg__kernels *kernels, double *lane, size_t summed,
                            const xg_real *x, size_t n)
{
    size_t first = summed % 16;
    double turned[16];
    if (!first) {
        kernels->sum_lanes(lane, x, n);
        return;
    }
    for (size_t l = 0; l < 16; l++) turned[l] = lane[(l + first) % 16];
    kernels->sum_lanes(turned, x, n);
    for (size_t l = 0; l < 16; l++) lane[(l + first) % 16] = turned[l];
}

static xg_real xg__sum_of_lanes(double *lane)
{
    for (int half = 8; half > 0; half /= 2) {
        for (int l = 0; l < half; l++) lane[l] += lane[l + half];
    }
    return (xg_real)lane[0];
}

/* Adds the numbers at a place to the lanes of a sum. */
static void xg__piece_sum(const xg__program *p, xg__piece *c, int place, double *lane)
{
    const xg_real *x = c->place[place];
    if (!c->pace[place]) {
        xg__repeat(p->result->tape, *x, c->room[XG__SLOTS], c->n);
        x = c->room[XG__SLOTS];
    }
    xg__sum_numbers(p->result->tape->kernels, lane, c->summed, x, c->n);
}

/* The first of a sweep's turns, the number of which is given among those of all sweeps. */
static void xg__ahead_begin(const xg__program *p, xg__piece *c, int turn)
{
    xg__ahead *ahead = &c->ahead;
    const size_t walkers = (size_t)p->walkers;
    ahead->row = c->n / c->rows;
    const size_t parts = (ahead->row + XG__FETCH - 1) / XG__FETCH;
    ahead->all = c->rows * parts * walkers;
    ahead->done = ahead->all * (size_t)turn / (size_t)p->turns;
    ahead->walker = (int)(ahead->done % walkers);
    ahead->first = ahead->done / walkers % parts * XG__FETCH;
    xg__spot_at(p, c->unit + p->batch, c->row + ahead->done / walkers / parts, &ahead->spot);
}

/* Asks for numbers of the next unit, of the result's, too: they come from memory while this one is
 * worked on. Each turn, a step or a sum, asks for an even share: more at once than the processor
 * has room for would hold it up, or be forgotten. */
static void xg__piece_fetch(const xg__program *p, xg__piece *c, int turn)
{
    xg__ahead *ahead = &c->ahead;
    const size_t turns = (size_t)p->turns, due = ahead->all * (size_t)(turn + 1);  /* times turns */
    for (; (ahead->done + 1) * turns <= due; ahead->done++) {
        const xg__walker *w = &p->source[p->walker[ahead->walker]];
        const xg_real *from = w == &p->source[p->sources] ? p->out : w->x->data;
        const size_t end = xg__min(ahead->first + XG__FETCH, ahead->row);
        from += xg__walker_at(w, &ahead->spot) + c->at;
        for (size_t i = ahead->first; i < end; i += 16) XG__PREFETCH(from, i);
        if (++ahead->walker < p->walkers) continue;
        ahead->walker = 0;
        ahead->first += XG__FETCH;
        if (ahead->first < ahead->row) continue;
        ahead->first = 0;
        xg__spot_next(p, &ahead->spot);
    }
}

static void xg__piece_run(const xg__program *p, const xg__sweep *sweep, xg__piece *c)
{
    const xg__walker *out = &p->source[p->sources];
    bool fetches = p->walkers > 0 && c->unit + p->batch < p->units;
    int turn = sweep->turn;
    if (fetches) xg__ahead_begin(p, c, turn);
    xg__spot_at(p, c->unit, c->row, &c->spot);
    xg__piece_load(p, sweep, c);
    for (int i = 0; i < sweep->count; i++) {
        const xg__step *s = &p->step[sweep->step[i]];
        int a = s->from[0], b = s->from[s->operands - 1];
        xg_real *to = xg__piece_goal(p, c, s, sweep->slot[i]);
        xg__step_run(s, c->place[a], c->pace[a], c->place[b], c->pace[b], to, c->n);
        if (fetches) xg__piece_fetch(p, c, turn++);
        c->place[sweep->step[i]] = to;
        if (p->out && s->node == p->result && out->packs) xg__piece_deliver(p, c, to);
    }
    for (int i = 0; i < sweep->sums; i++) {
        xg__piece_sum(p, c, p->step[sweep->sum[i]].from[0], c->lane[i]);
        if (fetches) xg__piece_fetch(p, c, turn++);
    }
    c->summed += c->n;
}

/* Pieces [begin, end) of a unit. */
static void xg__program_pass(const xg__program *p, const xg__sweep *sweep, xg__piece *c,
                             size_t begin, size_t end)
{
    size_t in_row = (p->row + p->piece - 1) / p->piece;
    for (size_t i = begin; i < end; i++) {
        c->row = p->group > 1 ? i * p->group : i / in_row;
        c->rows = xg__min(p->group, p->rows - c->row);
        c->at = p->group > 1 ? 0 : i % in_row * p->piece;
        c->n = p->group > 1 ? c->rows * p->row : xg__min(p->piece, p->row - c->at);
        xg__piece_run(p, sweep, c);
    }
}

/* What walks and what repeats is the same for all pieces. */
static void xg__piece_begin(const xg__program *p, xg__piece *c)
{
    c->unit = c->summed = 0;
    c->keep = NULL;
    for (int i = 0; i < p->steps; i++) c->pace[i] = p->step[i].part == XG__ROWS;
    for (int i = 0; i < p->sources; i++) {
        c->pace[XG__STEPS + i] = p->source[i].walks || p->source[i].packs;
    }
}

/* A sweep over the rows of a unit. */
static void xg__program_unit(const xg__program *p, const xg__sweep *sweep, xg__piece *c)
{
    c->summed = 0;
    memset(c->lane, 0, (size_t)sweep->sums * sizeof *c->lane);
    xg__program_pass(p, sweep, c, 0, p->pieces);
    for (int k = 0; k < sweep->sums; k++) {
        p->step[sweep->sum[k]].value[c->unit] = xg__sum_of_lanes(c->lane[k]);
    }
}

/* How many numbers are kept of a unit. */
static size_t xg__program_keeps(const xg__program *p)
{
    return (size_t)(p->kept + p->packs) * p->rows * p->row;
}

/* Units are divided among workers, who take small ones several at once ... */
static void xg__program_units(const void *job, size_t begin, size_t end, int worker)
{
    const xg__program *p = (const xg__program *)job;
    const size_t keeps = xg__program_keeps(p);
    xg__piece c;
    xg__piece_begin(p, &c);
    for (size_t first = begin; first < end; first += p->batch) {
        const size_t n = xg__min(p->batch, end - first);
        for (int i = 0; i < p->sweeps; i++) {
            xg__program_ones(p, &p->sweep[i], first, n);
            for (size_t u = 0; u < n; u++) {
                c.unit = first + u;
                c.keep = p->keep + ((size_t)worker * p->batch + u) * keeps;
                xg__program_unit(p, &p->sweep[i], &c);
            }
        }
        xg__program_ones(p, &p->sweep[p->sweeps], first, n);
    }
}

/* ... or, if there are none, pieces. */
static void xg__program_pieces_of(const void *job, size_t begin, size_t end, int worker)
{
    const xg__program *p = (const xg__program *)job;
    xg__piece c;
    (void)worker;
    xg__piece_begin(p, &c);
    xg__program_pass(p, &p->sweep[0], &c, begin, end);
}

/* False without memory for what is kept. */
static bool xg__program_run(xg__program *p)
{
    xg_tape *tape = p->result->tape;
    size_t cost = 0, keep = (size_t)tape->config.workers * p->batch * xg__program_keeps(p);
    for (int i = 0; i < p->sweeps; i++) {
        cost += (size_t)(p->sweep[i].count + 2 * p->sweep[i].sums);
    }
    cost *= p->group * p->piece + XG__START;
    if (!xg__has_units(p)) {
        xg__share_out(tape, p->pieces, cost, xg__program_pieces_of, p);
        return true;
    }
    xg__place place = xg__arena_mark(&tape->arena);
    p->keep = keep ? (xg_real *)xg__take(tape, keep * sizeof *p->keep) : &tape->nan;
    if (p->keep) xg__share_out(tape, p->units, cost * p->pieces, xg__program_units, p);
    xg__arena_release(&tape->arena, place);
    return p->keep != NULL;
}

/* A result of few steps is made again rather than kept, once its reader has run (4.8), unless that
 * would need others of its kind. */
enum { XG__CHEAP = 12, XG__WORTH = 16384 };    /* steps; numbers of what is worth the trouble */

static bool xg__program_cheap(const xg__program *p)
{
    const xg_tensor *x = p->result;
    const xg__step *last = xg__program_last(p);
    bool cheap = last->part == XG__ROWS && last->weight <= XG__CHEAP && !xg__is_dear(x->op);
    for (int i = 0; i < p->sources; i++) cheap = cheap && !p->source[i].x->cheap;
    return cheap;
}

/* Who reads an operand that waits plane by plane can take the planes as they are made, if that is
 * quick: then they are never all in memory. */
typedef struct xg__planes {
    const xg_tensor *x;
    size_t      size;                          /* of a plane */
    bool        made;                          /* by the program, when asked for; else in memory */
    xg__program program;
} xg__planes;

/* Opens the planes of x; false without memory. */
static bool xg__planes_open(xg__planes *planes, xg_tensor *x)
{
    xg__program *p = &planes->program;
    planes->x = x;
    planes->size = (size_t)x->shape.h * (size_t)x->shape.w;
    planes->made = !x->data && !xg__is_view(x) && !xg__is_sum(x) && !xg__runs_late(x)
                && xg__program_open(p, x) && !xg__has_units(p) && xg__program_cheap(p)
                && p->row % planes->size == 0 && (p->group == 1 || p->row == planes->size);
    return planes->made || xg__force(x);
}

/* Before a worker asks for its first plane. */
static void xg__planes_begin(const xg__planes *planes, xg__piece *c)
{
    c->rows = 1;
    if (planes->made) xg__piece_begin(&planes->program, c);
}

/* A plane. At `room`, there is room for one. */
static const xg_real *xg__planes_at(const xg__planes *planes, xg__piece *c, size_t number,
                                    xg_real *room)
{
    const xg__program *p = &planes->program;
    const size_t start = number * planes->size;
    if (!planes->made) return planes->x->data + start;
    const xg_real **made = &c->place[xg__program_last(p) - p->step];
    c->row = start / p->row;
    for (size_t at = 0; at < planes->size; at += c->n) {
        c->at = start % p->row + at;
        c->n = xg__min(planes->size - at, XG__CHUNK);
        xg__piece_run(p, &p->sweep[0], c);
        if (c->n == planes->size) return *made;
        memcpy(room + at, *made, c->n * sizeof *room);
    }
    return room;
}

/* A source that ends with the program (4.8) and is like the result, which then takes its place: row
 * by row, each when it has been read for the last time. NULL if there is none. */
static xg_tensor *xg__program_onto(const xg__program *p)
{
    const xg_tape *tape = p->result->tape;
    int gone[XG__PLACES + 1] = { 0 };          /* of those who hold what is at a place */
    for (int i = p->steps - 1; i >= 0; i--) {
        const xg__step *s = &p->step[i];
        const xg_tensor *x = s->node;
        bool settles = x == p->result || (s->part != XG__ROWS && !s->inner);
        bool ends = settles || (gone[i] == x->holds && x->id < tape->open);
        bool late = s->part == XG__SUM && s->sweep == p->sweeps - 1;     /* behind the result */
        if (!x->passing || !ends || late) continue;
        /* Not s->from: that looks through expansions, and past a step like an earlier one. */
        for (int k = 0; k < s->operands; k++) gone[xg__program_find(p, x->in[k])]++;
    }
    for (int i = 0; i < p->sources; i++) {
        xg_tensor *x = p->source[i].x;
        bool ends = x->passing && gone[XG__STEPS + i] == x->holds && x->id < tape->open;
        if (ends && xg__is_own(x) && xg_shape_same(x->shape, p->domain)) return x;
    }
    return NULL;
}

/* Runs what x waits for. */
static bool xg__force_program(xg_tensor *x)
{
    xg__program p;
    if (!xg__program_open(&p, x)) return !xg_failed(x->tape);
    for (int i = 0; i < p.steps; i++) {
        if (p.step[i].part == XG__ROWS) continue;
        p.step[i].value = xg__take_many(x->tape, xg_shape_size(p.unit));
        if (!p.step[i].value) return false;
    }
    bool rows = xg_shape_same(x->shape, p.domain);
    xg_tensor *onto = rows ? xg__program_onto(&p) : NULL;
    if (rows) p.out = onto ? onto->data : xg__take_numbers(x);
    if (rows && !p.out) return false;
    if (onto) p.walkers--;                     /* the last: it need not be fetched twice */
    if (!xg__program_run(&p)) return false;
    if (onto) onto->fixed = true;
    x->cheap = xg__program_cheap(&p);
    xg__hold(x);                               /* until all are settled */
    for (int i = 0; i < p.steps; i++) {
        const xg__step *s = &p.step[i];
        xg_real *data = s->part != XG__ROWS ? s->value : s->node == x ? p.out : NULL;
        if (s->inner) xg__give_many(x->tape, data, xg_shape_size(p.unit));
        else if (data && !xg__settle(s->node, data)) return false;
    }
    xg__let_go(x);
    return true;
}

/* 4.6.3 Finishing. In evaluation convolutions wait, too, because of what often follows them:
 *
 *           conv --- mul(scale) --- add(shift) --- add(shortcut) --- relu
 *
 *       Of that, what is there is done to their sums while these are in the cache, and only the
 *       last result is stored. Who asks for what came before it, which gradients do not, has the
 *       convolution run again. The bits are those of one operation after the other. */
typedef struct xg__ending { xg_tensor *conv, *scale, *shift, *more; bool relu; } xg__ending;

/* May x, which does `op`, be passed over? */
static bool xg__is_passed(const xg_tensor *x, xg_op op)
{
    return x->op == op && !x->data && !x->hub && !x->passing;
}

/* The same of a pair with one number a channel. */
static bool xg__is_channelwise(const xg_tensor *x, xg_op op)
{
    return xg__is_passed(x, op) && xg_shape_same(x->in[0]->shape, x->shape)
        && xg_shape_same(x->in[1]->shape, xg_shape4(1, x->shape.c, 1, 1));
}

/* Is x a convolution that waits, maybe scaled, maybe shifted? */
static bool xg__ending_begins(xg_tensor *x, xg__ending *e)
{
    memset(e, 0, sizeof *e);
    if (xg__is_channelwise(x, XG_OP_add)) {
        e->shift = x->in[1];
        x = x->in[0];
    }
    if (xg__is_channelwise(x, XG_OP_mul)) {
        e->scale = x->in[1];
        x = x->in[0];
    }
    e->conv = x;
    return xg__is_passed(x, XG_OP_conv2d);
}

/* Is x what a convolution can end with? */
static bool xg__ending_of(xg_tensor *x, xg__ending *e)
{
    const bool relu = xg__is_passed(x, XG_OP_relu);
    if (relu) x = x->in[0];
    bool found = xg__ending_begins(x, e);
    if (!found && xg__is_passed(x, XG_OP_add)) {
        for (int i = 0; i < 2 && !found; i++) {
            found = xg_shape_same(x->in[i]->shape, x->shape)
                 && xg_shape_same(x->in[1 - i]->shape, x->shape)
                 && xg__ending_begins(x->in[i], e);
            e->more = x->in[1 - i];
        }
    }
    e->relu = relu;
    return found;
}

/* Runs x by itself. With f, that is done to what it gives, and the numbers are the result's. */
static bool xg__run_waiting(xg_tensor *x, const xg__finish *f, xg_tensor *result)
{
    bool ready = xg__room_of(x->op)->manner == XG__LATER_OWN;      /* asks for its operands */
    if (!ready && !xg__force_all(x->in, 2)) return false;
    xg_tensor made = *x;
    made.data = xg__take_numbers(x);
    if (!made.data) return false;
    if (f) made.attr.conv.finish = f;
    xg__room_of(x->op)->run(&made);
    if (xg_failed(x->tape) || !xg__settle(result, made.data)) return false;
    for (int i = 0; i < 2 && xg__runs_late(x); i++) if (x->in[i]) xg__retire(x->in[i]);
    return true;
}

/* The ending as kernels know it, with its numbers and those of its convolution's operands. */
static bool xg__ending_finish(const xg__ending *e, xg__finish *f)
{
    xg_tensor *need[5] = { e->scale, e->shift, e->more, e->conv->in[0], e->conv->in[1] };
    if (!xg__force_all(need, 5)) return false;
    f->any = e->scale || e->shift || e->more || e->relu;
    f->relu = e->relu;
    f->scale = e->scale ? e->scale->data : NULL;
    f->shift = e->shift ? e->shift->data : NULL;
    f->more = e->more ? e->more->data : NULL;
    f->places = f->maxima = NULL;
    return true;
}

static bool xg__force_ending(xg_tensor *x, const xg__ending *e)
{
    xg__finish f;
    if (!xg__ending_finish(e, &f)) return false;
    if (e->conv->data) return xg__force_program(x);        /* something needed that one, too */
    return xg__run_waiting(e->conv, &f, x);
}

/* x shares the numbers of its operand, which therefore stay where they are. */
static bool xg__share(xg_tensor *x)
{
    xg_tensor *base = x->in[0];
    if (!xg__force(base)) return false;
    if (!base->passing) base->fixed = true;
    x->fixed = true;
    return xg__settle(x, base->data);
}

/* Gives x its numbers. False when there is no memory for them; the tape says so. */
static bool xg__force(xg_tensor *x)
{
    if (x->data) return true;
    if (xg__is_view(x)) return xg__share(x);
    bool sum = xg__is_sum(x);
    if (xg__runs_late(x) || (sum && !xg__separable(x->in[0]->shape, x->shape))) {
        return xg__run_waiting(x, NULL, x);
    }
    xg__ending ending;
    return !sum && xg__ending_of(x, &ending) ? xg__force_ending(x, &ending) : xg__force_program(x);
}

/* The leaf whose numbers x shows, itself or by way of reshapings; NULL if there is none, or if x
 * has ended. */
static xg_tensor *xg__leaf_behind(xg_tensor *x)
{
    while (x && x->op != XG_OP_leaf) x = xg__is_view(x) ? x->in[0] : NULL;
    return x;
}

/* Is x made of nothing but a leaf whose numbers are a store's? Then it is never dropped: a step
 * would have to keep the leaf's old numbers in its place. */
static bool xg__of_store(const xg_tensor *x)
{
    const xg_tensor *leaf = x->in[0] && !x->in[1] ? xg__leaf_behind(x->in[0]) : NULL;
    return leaf && leaf->fixed;
}

/* Finds out which leaves will be read, as they are or reshaped, by those that wait or may be
 * dropped and wait again (4.8). Leaves come before their readers. */
static void xg__find_awaited(xg_tape *tape)
{
    for (xg_tensor *node = tape->first; node; node = node->next) {
        bool stays = xg__room_of(node->op)->manner == XG__NOW || node->fixed || xg__of_store(node);
        if (node->op == XG_OP_leaf) node->awaited = false;
        for (int i = 0; i < 2 && !(node->data && stays); i++) {
            xg_tensor *leaf = xg__leaf_behind(node->in[i]);
            if (leaf) leaf->awaited = true;
        }
    }
}

/* Before the numbers at `leaf` change, which are a store's: those who wait and would read them get
 * a copy, by way of the leaf. */
static bool xg__keep_old(xg_tensor *leaf)
{
    if (!leaf->awaited) return true;
    xg_real *copy = xg__take_numbers(leaf);
    if (!copy) return false;
    memcpy(copy, leaf->data, xg_shape_size(leaf->shape) * sizeof *copy);
    return xg__settle(leaf, copy);
}

/* Reshapings of leaves that got other numbers get them too. */
static bool xg__spread_copies(xg_tape *tape)
{
    for (xg_tensor *node = tape->first; node; node = node->next) {
        xg_tensor *leaf = xg__leaf_behind(node);
        if (leaf && node->data != leaf->data && !xg__settle(node, leaf->data)) return false;
    }
    return true;
}

/* 4.7 Emit, the one door. Every operation passes here: checked, recorded, and run unless it may
 *     wait. */

/* How many operations wait in a chain that ends with y. Those that are no step of a later program
 * count as many: each is run inside the next, and the programs of all lie on the stack. */
static int xg__chain_length(const xg_tensor *y, xg__manner manner)
{
    const bool apart = manner == XG__VIEW || xg__is_dear(y->op);
    int longest = 0;
    for (int i = 0; i < 2; i++) {
        const xg_tensor *x = y->in[i];
        if (x && !x->data && x->depth > longest) longest = x->depth;
    }
    return longest + (manner == XG__LATER_OWN ? XG__DEPTH / 8 : apart ? XG__DEPTH / 16 : 1);
}

/* Records y, which waits for its operands. What shares numbers that are there need not wait. */
static xg_tensor *xg__record_waiting(xg_tensor *y, xg__manner manner)
{
    xg_tensor *a = y->in[0], *b = y->in[1];
    bool waits = manner != XG__VIEW || !a->data;
    y->depth = xg__chain_length(y, manner);
    xg_tensor *made = xg__record(y, true);
    if (!made) return NULL;
    xg__hold(a);
    xg__hold(b);
    if (manner == XG__LATER_SUM && a->born == y->tape->arena.marks) a->sum = made;
    if (waits) a->awaited = true;
    if (waits && b) b->awaited = true;
    return (waits && made->depth < XG__DEPTH) || xg__force(made) ? made : NULL;
}

/* The same product asked for twice is computed once: products, and the reshapings that lead to
 * them, are known by operation, operands and numbers. What only the last sweep of a step can see
 * is not among them: it may end (4.8). */
static bool xg__is_product(xg_op op)
{
    return op == XG_OP_matmul || op == XG_OP_conv2d || op == XG_OP_conv2d_dx ||
           op == XG_OP_conv2d_dw;
}

static bool xg__is_known(xg_op op) { return xg__is_product(op) || op == XG_OP_reshape; }

static xg_tensor **xg__known_place(const xg_tensor *y)
{
    unsigned hash = (unsigned)y->in[0]->id * 31u + (y->in[1] ? (unsigned)y->in[1]->id : 0u);
    return &y->tape->known[(hash * 31u + (unsigned)y->op) % XG__KNOWN];
}

/* What the tape has that is made as y is to be; or NULL. */
static xg_tensor *xg__known(const xg_tensor *y)
{
    for (xg_tensor *x = *xg__known_place(y); x; x = x->older) {
        bool same = x->op == y->op && x->in[0] == y->in[0] && x->in[1] == y->in[1] &&
                    xg_shape_same(x->shape, y->shape) && x->constant == y->constant;
        const xg_window *k = &x->attr.conv.window;
        if (same && y->op == XG_OP_matmul) {
            same = x->attr.transpose.a == y->attr.transpose.a &&
                   x->attr.transpose.b == y->attr.transpose.b;
        } else if (same && y->op != XG_OP_reshape) {
            same = memcmp(k, &y->attr.conv.window, sizeof *k) == 0;
        }
        if (same) return x;
    }
    return NULL;
}

static void xg__know(xg_tensor *y)
{
    xg_tensor **place = xg__known_place(y);
    if (y->passing) return;
    y->older = *place;
    *place = y;
}

/* Where a leaf gets other numbers, what was made of it is another thing. */
static void xg__forget(xg_tape *tape)
{
    const xg__place empty = XG__ZEROS;
    memset(tape->known, 0, sizeof tape->known);
    tape->kept = NULL;
    xg__arena_release(&tape->packs, empty);
}

/* Records y and runs it. A product may be added to the numbers of a tensor that ends with it. */
static xg_tensor *xg__record_run(xg_tensor *y, const xg__room *room)
{
    xg_tensor *onto = y->tape->onto;
    bool adds = onto && (y->op == XG_OP_conv2d_dw || y->op == XG_OP_matmul) &&
                xg_shape_same(y->shape, onto->shape);
    if (adds) y->data = onto->data;
    xg_tensor *made = xg__record(y, false);
    if (!made) return NULL;
    if (adds) {
        made->adds = onto->fixed = true;
        made->fixed = false;
        y->tape->onto = NULL;
    }
    room->run(made);
    for (int i = 0; i < 2; i++) if (y->in[i]) xg__retire(y->in[i]);
    return made;
}

static xg_tensor *xg__emit(xg_op op, xg_tensor *a, xg_tensor *b, const xg__attr *attr)
{
    xg_tape *tape = a && a->tape ? a->tape : b ? b->tape : NULL;
    if (xg_failed(tape)) return xg__poison(tape);
    const xg__room *room = xg__room_of(op);
    if (xg__is_poison(a) || (room->operands == 2 && xg__is_poison(b))) {
        xg_fail(tape, XG_ERR_ARGUMENT, "%s: an operand is missing or failed earlier", room->name);
        return xg__poison(tape);
    }
    xg_tensor y;
    memset(&y, 0, sizeof y);
    y.tape = tape;
    y.op = op;
    y.in[0] = a;
    y.in[1] = b;
    y.constant = tape->no_grad;
    if (attr) y.attr = *attr;
    if (b && b->tape != tape) {
        xg__refuse(&y, XG_ERR_TAPE, "operands live on different tapes");
    } else if (room->shape(&y) && !xg__shape_valid(y.shape)) {
        xg__refuse(&y, XG_ERR_SHAPE, "the result would be empty or too large");
    }
    if (xg_failed(tape)) return xg__poison(tape);
    xg_tensor *made = xg__is_known(op) ? xg__known(&y) : NULL;
    if (made) {
        tape->counts.shared += xg__is_product(op);
        if (xg__is_product(op) && !made->data) made->hub = true;  /* a convolution that waits */
        return made;
    }
    bool later = room->manner != XG__NOW;
    /* A convolution that waits has its operands' numbers, so that it never runs inside another. */
    bool ready = later || xg__force_operands(&y);
    later = later || ((op == XG_OP_conv2d || op == XG_OP_conv2d_dx) && y.attr.conv.waits)
         || (op == XG_OP_conv2d && xg__waits_for_pool(&y));
    if (ready) made = later ? xg__record_waiting(&y, room->manner) : xg__record_run(&y, room);
    if (!made || xg_failed(tape)) return xg__poison(tape);
    if (xg__is_known(op)) xg__know(made);
    return made;
}

/* 4.8 What is not needed any more. */

/* Gives back the numbers of x; it waits again. */
static void xg__drop(xg_tensor *x)
{
    if (!xg__is_own(x)) return;
    xg__give_many(x->tape, x->data, xg_size(x));
    x->data = NULL;
}

/* Called when an operation has read x. If x is cheap to make again, it is not kept: a convolution's
 * input, say, is batch norm and ReLU of what the convolution before gave, and its next reader comes
 * a whole network later. The last few are left alone, for readers that follow at once. */
static void xg__retire(xg_tensor *x)
{
    xg_tensor **recent = x->tape->recent, *oldest = recent[XG__RECENT - 1];
    bool kept = !x->cheap || x->fixed || x->passing || xg_size(x) < XG__WORTH;
    if (kept || xg__of_store(x)) return;
    for (int i = 0; i < XG__RECENT; i++) if (recent[i] == x) return;
    memmove(recent + 1, recent, (XG__RECENT - 1) * sizeof *recent);
    recent[0] = x;
    if (oldest) xg__drop(oldest);
}

/* Called when the last sweep of a step has been at x, and thus at all that was made of x. If only
 * products read it, they were the last. */
static void xg__read_last(xg_tensor *x)
{
    xg__manner manner = xg__room_of(x->op)->manner;
    bool pointwise = manner == XG__LATER_MAP || manner == XG__LATER_ZIP;
    if (pointwise && !x->awaited && xg_size(x) >= XG__WORTH && !xg__of_store(x)) xg__drop(x);
}

/* The gradient sweep of a training step is the last to read the tape, and what it makes on its way
 * nobody else can see. Each such tensor is held by those that wait for it and by the sweep itself;
 * when the last lets go, it ends: its memory is free, and it lets go of what it waited for. */
static void xg__end(xg_tensor *x)
{
    if (x->id >= x->tape->open) return;        /* the rule that made it may still use it */
    xg_tensor *in[2] = { NULL, NULL }, *factor = x->like.factor;
    bool tied = !x->data || xg__is_view(x);
    for (int i = 0; i < 2 && tied; i++) in[i] = x->in[i];
    if (in[0] && in[0]->sum == x) in[0]->sum = NULL;
    if (!tied) xg__drop(x);
    x->passing = false;
    x->fixed = true;
    x->data = &x->tape->nan;
    x->in[0] = x->in[1] = x->like.factor = NULL;
    xg__let_go(in[0]);
    xg__let_go(in[1]);
    xg__let_go(factor);
}

static bool xg__has_ended(const xg_tensor *x) { return x->data == &x->tape->nan; }

/* Whether the numbers of x are there: it neither waits nor has ended. */
static bool xg__is_there(const xg_tensor *x) { return x->data && !xg__has_ended(x); }

/* What x scatters over planes; NULL if x is no such thing, or if that has ended before x. */
static xg_tensor *xg__scattered(const xg_tensor *x)
{
    xg_tensor *from = x->op == XG_OP_scatter ? x->in[0] : NULL;
    return from && !xg__has_ended(from) ? from : NULL;
}

/* Ends what nobody holds of all that was made from number `first` on. */
static void xg__end_unheld(xg_tape *tape, int first)
{
    tape->open = INT_MAX;
    for (xg_tensor *x = tape->last; x && x->id >= first; x = x->prev) {
        if (x->passing && x->holds == 0) xg__end(x);
    }
}

/* 4.9 Leaves. */

static xg_tensor *xg__alias_leaf(xg_tape *tape, xg_shape s, xg_real *data)
{
    if (xg_failed(tape)) return xg__poison(tape);
    if (!xg__shape_valid(s)) {
        xg_fail(tape, XG_ERR_SHAPE, "leaf: extents must be at least 1 and their product must fit "
                "in memory, got [%d %d %d %d]", s.n, s.c, s.h, s.w);
        return xg__poison(tape);
    }
    xg_tensor x;
    memset(&x, 0, sizeof x);
    x.tape = tape;
    x.op = XG_OP_leaf;
    x.shape = s;
    x.data = data;
    xg_tensor *made = xg__record(&x, false);
    return made ? made : xg__poison(tape);
}

typedef struct xg__copy_job { xg_real *to; const xg_real *from; } xg__copy_job;

static void xg__copy_range(const void *context, size_t begin, size_t end)
{
    const xg__copy_job *job = (const xg__copy_job *)context;
    size_t bytes = (end - begin) * sizeof(xg_real);
    if (job->from) memcpy(job->to + begin, job->from + begin, bytes);
    else memset(job->to + begin, 0, bytes);
}

XG_API_DEF xg_tensor *xg_leaf(xg_tape *tape, xg_shape s, const xg_real *data)
{
    xg_tensor *x = xg__alias_leaf(tape, s, NULL);
    if (xg__is_poison(x)) return x;
    xg__copy_job job = { x->data, data };
    xg__parallel(tape, xg_size(x), 1, xg__copy_range, &job);
    return x;
}

XG_API_DEF xg_tensor *xg_leaf_borrow(xg_tape *tape, xg_shape s, const xg_real *data)
{
    if (!data) xg_fail(tape, XG_ERR_ARGUMENT, "leaf_borrow: there are no numbers: data is NULL");
    if ((uintptr_t)data % sizeof *data != 0) return xg_leaf(tape, s, data);
    xg_tensor *x = xg__alias_leaf(tape, s, (xg_real *)(uintptr_t)data);
    if (!xg__is_poison(x)) x->borrowed = true;
    return x;
}

XG_API_DEF xg_tensor *xg_full(xg_tape *tape, xg_shape s, double value)
{
    xg_tensor *x = xg__alias_leaf(tape, s, NULL);
    if (xg__is_poison(x)) return x;
    for (size_t i = 0, size = xg_size(x); i < size; i++) x->data[i] = (xg_real)value;
    return x;
}

XG_API_DEF xg_tensor *xg_scalar(xg_tape *tape, double value)
{
    return xg_full(tape, xg_shape4(1, 1, 1, 1), value);
}

XG_API_DEF xg_tensor *xg_randn(xg_tape *tape, xg_shape s, xg_rng *rng)
{
    xg_tensor *x = xg__alias_leaf(tape, s, NULL);
    if (xg__is_poison(x)) return x;
    for (size_t i = 0, size = xg_size(x); i < size; i++) x->data[i] = (xg_real)xg_rng_normal(rng);
    return x;
}

XG_API_DEF xg_tensor *xg_one_hot(xg_tape *tape, const int *label, int n, int classes)
{
    xg_tensor *x = xg_leaf(tape, xg_shape4(n, classes, 1, 1), NULL);
    if (xg__is_poison(x)) return x;
    for (int i = 0; i < n; i++) {
        if (label[i] < 0 || label[i] >= classes) {
            xg_fail(tape, XG_ERR_ARGUMENT, "one_hot: label %d of sample %d is not in [0, %d)",
                    label[i], i, classes);
            return xg__poison(tape);
        }
        x->data[(size_t)i * (size_t)classes + (size_t)label[i]] = 1;
    }
    return x;
}

XG_API_DEF xg_shape xg_shape_of(const xg_tensor *x)
{
    return x && x->tape ? x->shape : xg_shape4(1, 1, 1, 1);
}
XG_API_DEF size_t   xg_size(const xg_tensor *x)     { return xg_shape_size(xg_shape_of(x)); }
XG_API_DEF xg_tape *xg_tape_of(const xg_tensor *x)  { return x ? x->tape : NULL; }
XG_API_DEF xg_op    xg_op_of(const xg_tensor *x)    { return x ? x->op : XG_OP_leaf; }

XG_API_DEF const xg_real *xg_data(xg_tensor *x)
{
    static const xg_real not_a_number = (xg_real)NAN;
    if (!x || !x->tape) return &not_a_number;
    if (xg_failed(x->tape) || !xg__force(x)) return &x->tape->nan;
    x->fixed = true;
    return x->data;
}

/* What reads the leaf gets its own numbers before they change, and keeps them (4.8). */
static bool xg__force_readers(xg_tensor *leaf)
{
    for (xg_tensor *node = leaf->next; node; node = node->next) {
        for (int i = 0; i < 2; i++) {
            if (!node->in[i] || node->in[i]->data != leaf->data) continue;
            if (!xg__force(node)) return false;
            node->fixed = true;
        }
    }
    return true;
}

XG_API_DEF xg_real *xg_leaf_data(xg_tensor *leaf)
{
    if (!leaf || xg_failed(leaf->tape)) return NULL;
    if (leaf->op == XG_OP_leaf && !leaf->borrowed && !xg__is_poison(leaf)) {
        if (leaf->next) xg__forget(leaf->tape);
        return xg__force_readers(leaf) ? leaf->data : NULL;
    }
    xg_fail(leaf->tape, XG_ERR_ARGUMENT, "leaf_data: only leaves with numbers of their own can be "
            "written, this is %s %s", leaf->borrowed ? "a borrowed" : "the result of",
            xg__room_of(leaf->op)->name);
    return NULL;
}

XG_API_DEF double xg_item(xg_tensor *x)
{
    return (double)xg_data(x)[0];
}

XG_API_DEF size_t xg_read(xg_tensor *x, xg_real *out, size_t count)
{
    bool good = x && !xg_failed(x->tape) && xg__force(x);
    size_t size = good ? xg_size(x) : 0;
    for (size_t i = 0; i < count && i < size; i++) out[i] = x->data[i];
    for (size_t i = 0; i < count && !good; i++) out[i] = (xg_real)NAN;
    return size;
}

/* 4.10 Names, in a small hash table that release unwinds. */

static uint32_t xg__hash(const char *text)
{
    uint32_t h = 2166136261u;              /* FNV-1a */
    for (; *text; text++) h = (h ^ (uint32_t)(unsigned char)*text) * 16777619u;
    return h;
}

static void xg__name_owned(xg_tensor *x, const void *owner, const char *text)
{
    if (xg__is_poison(x) || xg_failed(x->tape)) return;
    xg_tape *tape = x->tape;
    size_t length = strlen(text) + 1;
    xg__name *name = (xg__name *)xg__take(tape, sizeof *name + length);
    if (!name) return;
    char *copy = (char *)(name + 1);
    memcpy(copy, text, length);
    name->tensor = x;
    name->owner = owner;
    name->text = copy;
    name->hash = xg__hash(text);
    name->older = tape->names;
    name->below = tape->bucket[name->hash % XG__BUCKETS];
    tape->bucket[name->hash % XG__BUCKETS] = name;
    tape->names = name;
    if (!x->name[0]) x->name = copy;
}

static xg_tensor *xg__find_owned(xg_tape *tape, const void *owner, const char *text)
{
    if (!tape) return NULL;
    uint32_t hash = xg__hash(text);
    for (xg__name *name = tape->bucket[hash % XG__BUCKETS]; name; name = name->below) {
        if (name->hash == hash && name->owner == owner && !strcmp(name->text, text)) {
            return name->tensor;
        }
    }
    return NULL;
}

XG_API_DEF xg_tensor *xg_name(xg_tensor *x, const char *name)
{
    xg__name_owned(x, NULL, name);
    return x;
}

/* Appends a name to a list in a text of `size` bytes; "..." once there is no room. */
static void xg__list_add(char *list, size_t size, const char *name)
{
    const size_t used = strlen(list), length = strlen(name);
    if (used >= 3 && !strcmp(list + used - 3, "...")) return;
    if (used > 0) strcat(list, ", ");
    strcat(list, used + length + 2 + 2 + 3 < size ? name : "...");
}

XG_API_DEF xg_tensor *xg_find(xg_tape *tape, const char *text)
{
    if (xg_failed(tape)) return xg__poison(tape);
    xg_tensor *found = xg__find_owned(tape, NULL, text);
    if (found) return found;
    char known[160] = "";
    for (xg__name *name = tape->names; name; name = name->older) {
        if (!name->owner) xg__list_add(known, sizeof known, name->text);
    }
    xg_fail(tape, XG_ERR_NAME, "no tensor is named '%.40s'; there are: %s", text,
            known[0] ? known : "none");
    return xg__poison(tape);
}

XG_API_DEF const char *xg_name_of(const xg_tensor *x)
{
    return x && x->name ? x->name : "";
}

/* 4.11 Running statistics wait until their step has succeeded. */

static void xg__defer_update(xg_tensor *running, xg_tensor *value, double momentum)
{
    xg_tape *tape = value->tape;
    xg__update *update = (xg__update *)xg__take(tape, sizeof *update);
    if (!update) return;
    update->running = running;
    update->target = running->data;
    update->value = value;
    update->momentum = momentum;
    update->older = tape->updates;
    update->newer = NULL;
    if (update->older) update->older->newer = update;
    tape->updates = update;
}

/* All that can fail, before leaves and running statistics change. */
static bool xg__prepare_updates(xg_tape *tape, xg_tensor *const *leaf, int count)
{
    bool good = true;
    for (xg__update *update = tape->updates; update && good; update = update->older) {
        good = !update->target || xg__force(update->value);
    }
    xg__find_awaited(tape);
    for (int i = 0; i < count && good; i++) good = xg__keep_old(leaf[i]);
    for (xg__update *update = tape->updates; update && good; update = update->older) {
        good = !update->target || xg__keep_old(update->running);
    }
    return good && xg__spread_copies(tape);
}

static void xg__commit_updates(xg_tape *tape)
{
    xg__forget(tape);
    xg__update *update = tape->updates;
    while (update && update->older) update = update->older;
    for (; update; update = update->newer) {
        if (!update->target) continue;         /* done already: a release brought it back */
        const xg_real *value = update->value->data;
        for (size_t i = 0, size = xg_size(update->value); i < size; i++) {
            double old = (double)update->target[i];
            update->target[i] = (xg_real)(old + update->momentum * ((double)value[i] - old));
        }
        update->target = NULL;
    }
    tape->updates = NULL;
}

/* 4.12 Packed weights. The steps of an attack, say, multiply new numbers by the same weights,
 *      and each product would pack them anew (3.5.2). Once XG__READS products have done so, the
 *      next one keeps what it packs for all that follow: until a release to before it, or until a
 *      leaf of the tape gets other numbers (xg__forget). They have an arena of their own: where
 *      memory runs out, it goes first, and weights are packed as ever until the release. */

/* Is x made of weights alone? Then it has the same numbers until all is forgotten. */
static bool xg__is_weights(xg_tensor *x)
{
    const xg_tensor *leaf = xg__leaf_behind(x);
    return leaf ? leaf->fixed : xg__of_store(x);
}

/* What the tape keeps of x, or where a product shall keep it; NULL if nowhere. */
static xg__packed *xg__packed_of(xg_tensor *x, bool along_k, size_t count)
{
    xg_tape *tape = x->tape;
    xg__kept *kept = tape->kept;
    while (kept && !(kept->of == x && kept->along_k == along_k)) kept = kept->older;
    if (kept) return &kept->packed;
    const xg__place place = xg__arena_mark(&tape->packs);
    xg_real *data = (xg_real *)xg__arena_take(&tape->packs, count * sizeof *data);
    kept = data ? (xg__kept *)xg__arena_take_any(&tape->arena, sizeof *kept) : NULL;
    if (!kept) {
        xg__arena_release(&tape->packs, place);
        return NULL;
    }
    xg__kept made = { tape->kept, x, along_k, { data, false }, place };
    *kept = made;
    tape->kept = kept;
    return &kept->packed;
}

/* Where a product of a and b finds packed weights, or shall keep them; NULL if it does not pay. */
static xg__packed *xg__find_packed(xg_tensor *a, xg_tensor *b, const xg__gemm_job *job)
{
    bool of_a;
    xg_tensor *x = xg__is_weights(b) ? b : a;
    if (!xg__is_weights(x) || x->shape.n * x->shape.c != 1) return NULL;
    if (x->reads < XG__READS) {
        x->reads++;
        return NULL;
    }
    size_t count = x->tape->kernels->gemm_packed(job, &of_a);
    if (count == 0 || of_a != (x == a)) return NULL;
    xg__packed *packed = xg__packed_of(x, of_a ? !job->ta : job->tb, count);
    if (packed) x->tape->counts.packed += packed->made;
    return packed;
}

/* ============================================================================================== *
 *  [5] ops                                                                                       *
 * ============================================================================================== */

/* A room holds all there is to know of an operation: its shape rule, its kernel, its gradient rule
 * and its public function. The manual tells how to add one. */

/* A gradient rule: what y's operand i gets of g, the cotangent of y (xg_vjp in [A6]). */
#define XG__RULE(name) \
    static xg_tensor *xg__vjp_##name(xg_tensor *y XG__UNUSED, int i XG__UNUSED, xg_tensor *g)

static xg_tensor *xg__emit1(xg_op op, xg_tensor *x) { return xg__emit(op, x, NULL, NULL); }

static xg_tensor *xg__emit_number(xg_op op, xg_tensor *x, double p, double q)
{
    xg__attr attr;
    attr.number.p = p;
    attr.number.q = q;
    return xg__emit(op, x, NULL, &attr);
}

static xg_tensor *xg__emit_to(xg_op op, xg_tensor *x, xg_tensor *with, xg_shape shape)
{
    xg__attr attr;
    attr.to.shape = shape;
    return xg__emit(op, x, with, &attr);
}

/* Most kernels of this section do the same to every h*w plane of y, which is their context. */
static void xg__for_planes(xg_tensor *y, size_t cost,
                           void (*run)(const void *y, size_t begin, size_t end))
{
    xg__parallel(y->tape, (size_t)y->shape.n * (size_t)y->shape.c, cost, run, y);
}

static size_t xg__plane(const xg_tensor *x) { return (size_t)x->shape.h * (size_t)x->shape.w; }

/* What a kernel left in its 16 lanes, in all; they are used up. */
static double xg__lanes_sum(double *lane)
{
    for (int half = 8; half > 0; half /= 2) {
        for (int l = 0; l < half; l++) lane[l] += lane[l + half];
    }
    return lane[0];
}

/* ---- 5.1 pointwise --------------------------------------------------------------------------- */

static bool xg__shape_map(xg_tensor *y)
{
    y->shape = y->in[0]->shape;
    return true;
}

XG_API_DEF xg_tensor *xg_exp(xg_tensor *x) { return xg__emit1(XG_OP_exp, x); }
XG__RULE(exp) { return xg_mul(g, y); }

XG_API_DEF xg_tensor *xg_log(xg_tensor *x) { return xg__emit1(XG_OP_log, x); }
XG__RULE(log) { return xg_div(g, y->in[i]); }

XG_API_DEF xg_tensor *xg_sqrt(xg_tensor *x) { return xg__emit1(XG_OP_sqrt, x); }
XG__RULE(sqrt) { return xg_div(xg_affine(g, 0.5, 0), y); }

XG_API_DEF xg_tensor *xg_pow(xg_tensor *x, double p) { return xg__emit_number(XG_OP_pow, x, p, 0); }
XG__RULE(pow)
{
    double p = y->attr.number.p;
    if (p == 0) return NULL;
    if (p == 1) return g;
    return xg_mul(g, xg_affine(xg_pow(y->in[i], p - 1), p, 0));
}

XG_API_DEF xg_tensor *xg_sigmoid(xg_tensor *x) { return xg__emit1(XG_OP_sigmoid, x); }
XG__RULE(sigmoid) { return xg_mul(g, xg_mul(y, xg_affine(y, -1, 1))); }

XG_API_DEF xg_tensor *xg_tanh(xg_tensor *x) { return xg__emit1(XG_OP_tanh, x); }
XG__RULE(tanh) { return xg_mul(g, xg_affine(xg_mul(y, y), -1, 1)); }

XG_API_DEF xg_tensor *xg_softplus(xg_tensor *x) { return xg__emit1(XG_OP_softplus, x); }
XG__RULE(softplus) { return xg_mul(g, xg_sigmoid(y->in[i])); }

XG_API_DEF xg_tensor *xg_abs(xg_tensor *x) { return xg__emit1(XG_OP_abs, x); }
XG__RULE(abs) { return xg_mul(g, xg_sign(y->in[i])); }

XG_API_DEF xg_tensor *xg_affine(xg_tensor *x, double a, double b)
{
    return xg__emit_number(XG_OP_affine, x, a, b);
}
XG__RULE(affine) { return y->attr.number.p == 1 ? g : xg_affine(g, y->attr.number.p, 0); }

XG_API_DEF xg_tensor *xg_relu(xg_tensor *x) { return xg__emit1(XG_OP_relu, x); }
/* y > 0 exactly where x > 0. What came to y by way of y's maxima is gated there, where it is fewer
 * numbers: elsewhere it is 0 anyway. Where paths met at y, their sum is read here and nowhere else,
 * but what passes is read by all who follow: that is what is computed once. */
XG__RULE(relu)
{
    xg_tensor *from = xg__scattered(g), *at = from ? g->in[1] : NULL;
    xg_tensor *maxima = at ? at->next : NULL;
    if (maxima && maxima->op == XG_OP_gather && maxima->in[0] == y && maxima->in[1] == at) {
        return xg_scatter(xg_gate(from, maxima), at, y->shape);
    }
    xg_tensor *passed = xg_gate(g, y);
    if (g->hub && !g->data && !xg__is_poison(passed)) {
        passed->hub = true;
        g->hub = false;
    }
    return passed;
}

XG_API_DEF xg_tensor *xg_clamp(xg_tensor *x, double lo, double hi)
{
    return xg__emit_number(XG_OP_clamp, x, lo, hi);
}
XG__RULE(clamp)
{
    double lo = y->attr.number.p, hi = y->attr.number.q;
    return xg_gate(g, xg__emit_number(XG_OP_within, y->in[i], lo, hi));
}

XG_API_DEF xg_tensor *xg_sign(xg_tensor *x) { return xg__emit1(XG_OP_sign, x); }
XG_API_DEF xg_tensor *xg_step(xg_tensor *x) { return xg__emit1(XG_OP_step, x); }
XG_API_DEF xg_tensor *xg_neg(xg_tensor *x) { return xg_affine(x, -1, 0); }
XG_API_DEF xg_tensor *xg_square(xg_tensor *x) { return xg_mul(x, x); }

/* ---- 5.2 binary, broadcasting ---------------------------------------------------------------- */

static xg_shape xg__with_extent(xg_shape s, int axis, int extent)
{
    int e[4];
    for (int i = 0; i < 4; i++) e[i] = i == axis ? extent : xg__extent(s, i);
    return xg_shape4(e[0], e[1], e[2], e[3]);
}

static bool xg__shape_zip(xg_tensor *y)
{
    xg_shape a = y->in[0]->shape, b = y->in[1]->shape, s = a;
    for (int axis = 0; axis < 4; axis++) {
        int ea = xg__extent(a, axis), eb = xg__extent(b, axis);
        if (ea != eb && ea != 1 && eb != 1) {
            return xg__refuse(y, XG_ERR_SHAPE, "axes must be equal, or 1 to broadcast");
        }
        s = xg__with_extent(s, axis, ea == 1 ? eb : ea);
    }
    y->shape = s;
    return true;
}

XG_API_DEF xg_tensor *xg_add(xg_tensor *a, xg_tensor *b) { return xg__emit(XG_OP_add, a, b, NULL); }
XG__RULE(add) { return g; }

XG_API_DEF xg_tensor *xg_sub(xg_tensor *a, xg_tensor *b) { return xg__emit(XG_OP_sub, a, b, NULL); }
XG__RULE(sub) { return i == 0 ? g : xg_neg(g); }

XG_API_DEF xg_tensor *xg_mul(xg_tensor *a, xg_tensor *b) { return xg__emit(XG_OP_mul, a, b, NULL); }
XG__RULE(mul) { return xg_mul(g, y->in[1 - i]); }

XG_API_DEF xg_tensor *xg_div(xg_tensor *a, xg_tensor *b) { return xg__emit(XG_OP_div, a, b, NULL); }
XG__RULE(div)
{
    if (i == 0) return xg_div(g, y->in[1]);
    return xg_neg(xg_div(xg_mul(g, y), y->in[1]));
}

/* g where operand i was chosen; `second` is 1 where that was operand 1. */
static xg_tensor *xg__to_better(xg_tensor *g, int i, xg_tensor *second)
{
    return xg_gate(g, i == 0 ? xg_affine(second, -1, 1) : second);
}

XG_API_DEF xg_tensor *xg_max(xg_tensor *a, xg_tensor *b) { return xg__emit(XG_OP_max, a, b, NULL); }
XG__RULE(max) { return xg__to_better(g, i, xg_less(y->in[0], y->in[1])); }

XG_API_DEF xg_tensor *xg_min(xg_tensor *a, xg_tensor *b) { return xg__emit(XG_OP_min, a, b, NULL); }
XG__RULE(min) { return xg__to_better(g, i, xg_less(y->in[1], y->in[0])); }

XG_API_DEF xg_tensor *xg_less(xg_tensor *a, xg_tensor *b)
{
    return xg__emit(XG_OP_less, a, b, NULL);
}

XG_API_DEF xg_tensor *xg_gate(xg_tensor *g, xg_tensor *x)
{
    return xg__emit(XG_OP_gate, g, x, NULL);
}
XG__RULE(gate) { return i == 0 ? xg_gate(g, y->in[1]) : NULL; }

/* ---- 5.3 shape ------------------------------------------------------------------------------- */

static bool xg__can_expand(xg_shape from, xg_shape to)
{
    for (int axis = 0; axis < 4; axis++) {
        int e = xg__extent(from, axis);
        if (e != 1 && e != xg__extent(to, axis)) return false;
    }
    return true;
}

static bool xg__shape_sum_to(xg_tensor *y)
{
    y->shape = y->attr.to.shape;
    if (xg__can_expand(y->shape, y->in[0]->shape)) return true;
    return xg__refuse(y, XG_ERR_SHAPE, "each axis must stay or become 1");
}

/* Sums that leave the innermost axis are run here, and all others as programs (4.6):
 *     y[o,i,j] = sum over r, t of x[o,r,i,t,j], in double, t fastest, then r. */
typedef struct xg__sum_job {
    const xg__kernels *kernels;
    const xg_real *x;
    xg_real *y;
    size_t r, i, t, j;
} xg__sum_job;

/* Units are chunks of the j numbers of an output [o,i]; a quarter, so that workers share them. */
static size_t xg__columns_at_once(size_t j)
{
    return xg__min((j + 63) / 64 * 16, XG__CHUNK);
}

static void xg__sum_columns(const void *context, size_t begin, size_t end)
{
    const xg__sum_job *job = (const xg__sum_job *)context;
    double sum[XG__CHUNK];
    size_t most = xg__columns_at_once(job->j), chunks = (job->j + most - 1) / most;
    for (size_t unit = begin; unit < end; unit++) {
        size_t o = unit / chunks, first = unit % chunks * most;
        size_t width = xg__min(job->j - first, most);
        memset(sum, 0, width * sizeof *sum);
        for (size_t k = 0; k < job->r * job->t; k++) {
            size_t block = (o / job->i * job->r + k / job->t) * job->i + o % job->i;
            job->kernels->sum_each(sum, job->x + (block * job->t + k % job->t) * job->j + first,
                                   width);
        }
        for (size_t c = 0; c < width; c++) job->y[o * job->j + first + c] = (xg_real)sum[c];
    }
}

/* Merges axes into runs of kept and summed ones: o kept, r summed, i kept, t summed, j kept. */
static void xg__run_sum_to(xg_tensor *y)
{
    const xg_tensor *x = y->in[0];
    size_t run[6] = { 1, 1, 1, 1, 1, 1 };
    int slot = 0;
    for (int axis = 0; axis < 4; axis++) {
        int e = xg__extent(x->shape, axis);
        if (e == 1) continue;
        int summed = xg__extent(y->shape, axis) == 1;
        if (summed != (slot & 1)) slot++;
        run[slot] *= (size_t)e;
    }
    if (run[3] == 1) {                         /* one summed run: let it be t */
        run[3] = run[1];
        run[4] = run[2];
        run[2] = run[0];
        run[0] = run[1] = 1;
    }
    const xg__sum_job job = { y->tape->kernels, x->data, y->data, run[1], run[2], run[3], run[4] };
    size_t most = xg__columns_at_once(job.j), chunks = (job.j + most - 1) / most;
    xg__parallel(y->tape, run[0] * run[2] * chunks, job.r * job.t * job.j / chunks,
                 xg__sum_columns, &job);
}

/* The sum over pictures of an input gradient: it is linear, hence that of the sum of g. Only of one
 * that was made to wait for this question; whether it still waits cannot matter, or bits would
 * depend on who asked first. */
static xg_tensor *xg__sum_pictures(xg_tensor *x, xg_shape s)
{
    xg_tensor *g = x->in[1];
    xg_shape one = xg_shape4(1, g->shape.c, g->shape.h, g->shape.w);
    return xg_conv2d_dx(x->in[0], xg_sum_to(g, one), x->attr.conv.window, s);
}

/* A sum of everything is taken sample by sample first: that can be divided among workers. Where
 * whole planes are summed, what was scattered over them has the same sum. */
XG_API_DEF xg_tensor *xg_sum_to(xg_tensor *x, xg_shape s)
{
    if (x && xg_shape_same(x->shape, s)) return x;
    if (x && x->op == XG_OP_conv2d_dx && x->attr.conv.waits
        && xg_shape_same(s, xg_shape4(1, x->shape.c, x->shape.h, x->shape.w))) {
        return xg__sum_pictures(x, s);
    }
    if (x && xg__scattered(x) && s.h == 1 && s.w == 1) x = xg__scattered(x);
    if (x && xg_shape_same(x->shape, s)) return x;
    if (x && xg_shape_size(s) == 1 && x->shape.n > 1 && xg_size(x) > (size_t)x->shape.n) {
        x = xg__emit_to(XG_OP_sum_to, x, NULL, xg_shape4(x->shape.n, 1, 1, 1));
    }
    return xg__emit_to(XG_OP_sum_to, x, NULL, s);
}
XG__RULE(sum_to) { return xg_expand(g, y->in[i]->shape); }

static bool xg__shape_expand(xg_tensor *y)
{
    y->shape = y->attr.to.shape;
    if (xg__can_expand(y->in[0]->shape, y->shape)) return true;
    return xg__refuse(y, XG_ERR_SHAPE, "each axis must stay or grow from 1");
}

/* Where row (n,c,h) of a tensor starts, which may be walked with broadcasting. */
static xg_real *xg__row_of(const xg_tensor *x, int n, int c, int h)
{
    xg_shape s = x->shape;
    size_t row = (size_t)(s.n == 1 ? 0 : n);
    row = row * (size_t)s.c + (size_t)(s.c == 1 ? 0 : c);
    row = row * (size_t)s.h + (size_t)(s.h == 1 ? 0 : h);
    return x->data + row * (size_t)s.w;
}

XG_API_DEF xg_tensor *xg_expand(xg_tensor *x, xg_shape s)
{
    if (x && xg_shape_same(x->shape, s)) return x;
    return xg__emit_to(XG_OP_expand, x, NULL, s);
}
XG__RULE(expand) { return xg_sum_to(g, y->in[i]->shape); }

static bool xg__shape_reshape(xg_tensor *y)
{
    y->shape = y->attr.to.shape;
    if (!xg__shape_valid(y->shape) || xg_shape_size(y->shape) != xg_size(y->in[0])) {
        return xg__refuse(y, XG_ERR_SHAPE, "the number of elements must stay the same");
    }
    return true;
}

XG_API_DEF xg_tensor *xg_reshape(xg_tensor *x, xg_shape s)
{
    return xg__emit_to(XG_OP_reshape, x, NULL, s);
}
XG__RULE(reshape) { return xg_reshape(g, y->in[i]->shape); }

static bool xg__shape_permute(xg_tensor *y)
{
    int seen = 0, e[4];
    for (int i = 0; i < 4; i++) {
        int axis = y->attr.axes.order[i];
        if (axis < 0 || axis > 3) return xg__refuse(y, XG_ERR_ARGUMENT, "axes are 0, 1, 2 and 3");
        seen |= 1 << axis;
        e[i] = xg__extent(y->in[0]->shape, axis);
    }
    if (seen != 15) return xg__refuse(y, XG_ERR_ARGUMENT, "each axis must be named once");
    y->shape = xg_shape4(e[0], e[1], e[2], e[3]);
    return true;
}

/* permute and flip walk x along y's axes: where y starts, and a step for each axis, back if it is
 * reversed. */
static void xg__strided_planes(const void *context, size_t begin, size_t end)
{
    const xg_tensor *y = (const xg_tensor *)context, *x = y->in[0];
    const int *order = y->attr.axes.order;
    const xg_shape s = y->shape;
    ptrdiff_t start = 0, step[4], natural[4] = { 1, 1, 1, 1 };
    for (int i = 2; i >= 0; i--) natural[i] = natural[i + 1] * xg__extent(x->shape, i + 1);
    for (int i = 0; i < 4; i++) {
        bool back = y->op == XG_OP_flip && order[i];
        step[i] = y->op == XG_OP_permute ? natural[order[i]] : back ? -natural[i] : natural[i];
        if (back) start += natural[i] * (xg__extent(s, i) - 1);
    }
    xg_real *out = y->data + begin * xg__plane(y);
    for (size_t plane = begin; plane < end; plane++) {
        ptrdiff_t n = (ptrdiff_t)(plane / (size_t)s.c), c = (ptrdiff_t)(plane % (size_t)s.c);
        for (int h = 0; h < s.h; h++) {
            const xg_real *in = x->data + start + n * step[0] + c * step[1] + h * step[2];
            for (int w = 0; w < s.w; w++) *out++ = in[w * step[3]];
        }
    }
}

static void xg__run_permute(xg_tensor *y) { xg__for_planes(y, xg__plane(y), xg__strided_planes); }

static xg_tensor *xg__emit_axes(xg_op op, xg_tensor *x, const int order[4])
{
    xg__attr attr;
    memcpy(attr.axes.order, order, sizeof attr.axes.order);
    return xg__emit(op, x, NULL, &attr);
}

XG_API_DEF xg_tensor *xg_permute(xg_tensor *x, int n, int c, int h, int w)
{
    const int order[4] = { n, c, h, w };
    return xg__emit_axes(XG_OP_permute, x, order);
}
XG__RULE(permute)
{
    int back[4];
    for (int axis = 0; axis < 4; axis++) back[y->attr.axes.order[axis]] = axis;
    return xg__emit_axes(XG_OP_permute, g, back);
}

static bool xg__shape_flip(xg_tensor *y) { return xg__shape_map(y); }

static void xg__run_flip(xg_tensor *y) { xg__run_permute(y); }

XG_API_DEF xg_tensor *xg_flip(xg_tensor *x, bool n, bool c, bool h, bool w)
{
    const int reversed[4] = { n, c, h, w };
    return xg__emit_axes(XG_OP_flip, x, reversed);
}
XG__RULE(flip) { return xg__emit_axes(XG_OP_flip, g, y->attr.axes.order); }

/* Is the box that starts at `from` with extents `box` inside `whole`? */
static bool xg__box_inside(xg_shape from, xg_shape box, xg_shape whole)
{
    for (int axis = 0; axis < 4; axis++) {
        int start = xg__extent(from, axis), e = xg__extent(box, axis);
        int room = xg__extent(whole, axis);
        if (start < 0 || e < 1 || e > room || start > room - e) return false;
    }
    return true;
}

static bool xg__shape_slice(xg_tensor *y)
{
    y->shape = y->attr.box.shape;
    if (xg__box_inside(y->attr.box.from, y->shape, y->in[0]->shape)) return true;
    return xg__refuse(y, XG_ERR_SHAPE, "the box does not lie inside the tensor");
}

/* Copies a box between tensors; `from` and `to` are where it starts in each. What lies in one piece
 * in both is copied at once. */
static void xg__copy_box(const xg_tensor *x, xg_shape from, xg_tensor *y, xg_shape to, xg_shape all)
{
    xg_shape box = all;                        /* of pieces */
    size_t run = (size_t)box.w;
    for (int axis = 3; axis > 0; axis--) {
        int e = xg__extent(all, axis);
        if (e != xg__extent(x->shape, axis) || e != xg__extent(y->shape, axis)) break;
        run *= (size_t)xg__extent(all, axis - 1);
        box = xg__with_extent(box, axis - 1, 1);
    }
    for (int n = 0; n < box.n; n++) {
        for (int c = 0; c < box.c; c++) {
            for (int h = 0; h < box.h; h++) {
                memcpy(xg__row_of(y, to.n + n, to.c + c, to.h + h) + to.w,
                       xg__row_of(x, from.n + n, from.c + c, from.h + h) + from.w,
                       run * sizeof(xg_real));
            }
        }
    }
}

static xg_shape xg__origin(void) { return xg_shape4(0, 0, 0, 0); }

static void xg__run_slice(xg_tensor *y)
{
    xg__copy_box(y->in[0], y->attr.box.from, y, xg__origin(), y->shape);
}

static xg_tensor *xg__emit_box(xg_op op, xg_tensor *x, xg_shape from, xg_shape s)
{
    xg__attr attr;
    attr.box.from = from;
    attr.box.shape = s;
    return xg__emit(op, x, NULL, &attr);
}

XG_API_DEF xg_tensor *xg_slice(xg_tensor *x, xg_shape from, xg_shape s)
{
    return xg__emit_box(XG_OP_slice, x, from, s);
}
XG__RULE(slice) { return xg_pad(g, y->attr.box.from, y->in[i]->shape); }

static bool xg__shape_pad(xg_tensor *y)
{
    y->shape = y->attr.box.shape;
    if (xg__box_inside(y->attr.box.from, y->in[0]->shape, y->shape)) return true;
    return xg__refuse(y, XG_ERR_SHAPE, "the tensor does not fit at that place");
}

static void xg__run_pad(xg_tensor *y)
{
    memset(y->data, 0, xg_size(y) * sizeof(xg_real));
    xg__copy_box(y->in[0], xg__origin(), y, y->attr.box.from, y->in[0]->shape);
}

XG_API_DEF xg_tensor *xg_pad(xg_tensor *x, xg_shape from, xg_shape s)
{
    return xg__emit_box(XG_OP_pad, x, from, s);
}
XG__RULE(pad) { return xg_slice(g, y->attr.box.from, y->in[i]->shape); }

static bool xg__shape_concat(xg_tensor *y)
{
    int axis = y->attr.one.value;
    xg_shape a = y->in[0]->shape, b = y->in[1]->shape;
    if (axis < 0 || axis > 3) return xg__refuse(y, XG_ERR_ARGUMENT, "the axis is 0, 1, 2 or 3");
    if (!xg_shape_same(xg__with_extent(a, axis, 1), xg__with_extent(b, axis, 1))) {
        return xg__refuse(y, XG_ERR_SHAPE, "all axes but the joined one must agree");
    }
    if (xg__extent(a, axis) > INT_MAX - xg__extent(b, axis)) {
        return xg__refuse(y, XG_ERR_SHAPE, "the joined axis would be too long");
    }
    y->shape = xg__with_extent(a, axis, xg__extent(a, axis) + xg__extent(b, axis));
    return true;
}

/* Where the second operand of a concat starts. */
static xg_shape xg__concat_seam(const xg_tensor *y)
{
    int axis = y->attr.one.value;
    return xg__with_extent(xg__origin(), axis, xg__extent(y->in[0]->shape, axis));
}

static void xg__run_concat(xg_tensor *y)
{
    xg__copy_box(y->in[0], xg__origin(), y, xg__origin(), y->in[0]->shape);
    xg__copy_box(y->in[1], xg__origin(), y, xg__concat_seam(y), y->in[1]->shape);
}

XG_API_DEF xg_tensor *xg_concat(xg_tensor *a, xg_tensor *b, int axis)
{
    xg__attr attr;
    attr.one.value = axis;
    return xg__emit(XG_OP_concat, a, b, &attr);
}
XG__RULE(concat)
{
    return xg_slice(g, i == 0 ? xg__origin() : xg__concat_seam(y), y->in[i]->shape);
}

XG_API_DEF xg_tensor *xg_sum(xg_tensor *x) { return xg_sum_to(x, xg_shape4(1, 1, 1, 1)); }
XG_API_DEF xg_tensor *xg_mean(xg_tensor *x) { return xg_mean_to(x, xg_shape4(1, 1, 1, 1)); }
XG_API_DEF xg_tensor *xg_mean_to(xg_tensor *x, xg_shape s)
{
    double share = (double)xg_shape_size(s) / (double)xg_size(x);
    return xg_affine(xg_sum_to(x, s), share, 0);
}
XG_API_DEF xg_tensor *xg_dot(xg_tensor *a, xg_tensor *b) { return xg_sum(xg_mul(a, b)); }
/* What is too long for an axis is refused by reshape, as not the same number of elements. */
XG_API_DEF xg_tensor *xg_flatten(xg_tensor *x)
{
    int n = xg_shape_of(x).n;
    return xg_reshape(x, xg_shape4(n, (int)xg__min(xg_size(x) / (size_t)n, INT_MAX), 1, 1));
}

/* ---- 5.4 matmul ------------------------------------------------------------------------------ */

static bool xg__shape_matmul(xg_tensor *y)
{
    xg_shape a = y->in[0]->shape, b = y->in[1]->shape;
    bool ta = y->attr.transpose.a, tb = y->attr.transpose.b;
    if ((ta ? a.h : a.w) != (tb ? b.w : b.h)) {
        return xg__refuse(y, XG_ERR_SHAPE, "the inner extents differ");
    }
    if ((a.n != b.n && a.n != 1 && b.n != 1) || (a.c != b.c && a.c != 1 && b.c != 1)) {
        return xg__refuse(y, XG_ERR_SHAPE, "batch axes must be equal, or 1 to broadcast");
    }
    y->shape = xg_shape4(a.n > b.n ? a.n : b.n, a.c > b.c ? a.c : b.c, ta ? a.w : a.h,
                         tb ? b.h : b.w);
    return true;
}

/* The distance between the matrices of a batch, or -1 when they do not lie at one distance. */
static ptrdiff_t xg__batch_step(const xg_tensor *x, const xg_tensor *y)
{
    if (x->shape.n * x->shape.c == 1) return 0;
    if (x->shape.n == y->shape.n && x->shape.c == y->shape.c) return (ptrdiff_t)xg__plane(x);
    return -1;
}

static void xg__run_gemm(xg_tensor *y, const xg__gemm_job *job)
{
    const xg__kernels *kernels = y->tape->kernels;
    xg__team team;
    xg__place place = xg__arena_mark(&y->tape->arena);
    if (xg__team_open(y->tape, kernels->gemm_scratch(job, y->tape->config.workers), &team)) {
        kernels->gemm(job, &team);
    }
    xg__arena_release(&y->tape->arena, place);
}

static void xg__run_matmul(xg_tensor *y)
{
    xg_tensor *a = y->in[0], *b = y->in[1];
    xg__gemm_job job = XG__ZEROS;
    job.ta = y->attr.transpose.a;
    job.tb = y->attr.transpose.b;
    job.m = y->shape.h;
    job.n = y->shape.w;
    job.k = job.ta ? a->shape.h : a->shape.w;
    job.batch = y->shape.n * y->shape.c;
    y->tape->counts.flops += 2.0 * job.m * job.n * job.k * job.batch;
    ptrdiff_t step_a = xg__batch_step(a, y), step_b = xg__batch_step(b, y);
    job.step_a = (size_t)step_a;
    job.step_b = (size_t)step_b;
    job.step_c = xg__plane(y);
    job.a = a->data;
    job.b = b->data;
    job.c = y->data;
    job.add = y->adds;
    if (step_a >= 0 && step_b >= 0) {
        job.packed = xg__find_packed(a, b, &job);
        xg__run_gemm(y, &job);
        return;
    }
    job.batch = 1;                             /* mixed broadcasting: one matrix after the other */
    for (int n = 0; n < y->shape.n; n++) {
        for (int c = 0; c < y->shape.c; c++) {
            job.a = xg__row_of(a, n, c, 0);
            job.b = xg__row_of(b, n, c, 0);
            xg__run_gemm(y, &job);
            job.c += job.step_c;
        }
    }
}

XG_API_DEF xg_tensor *xg_matmul(xg_tensor *a, xg_tensor *b, bool transpose_a, bool transpose_b)
{
    xg__attr attr;
    attr.transpose.a = transpose_a;
    attr.transpose.b = transpose_b;
    return xg__emit(XG_OP_matmul, a, b, &attr);
}
XG__RULE(matmul)
{
    bool ta = y->attr.transpose.a, tb = y->attr.transpose.b;
    xg_tensor *a = y->in[0], *b = y->in[1];
    if (i == 0) return ta ? xg_matmul(b, g, tb, true) : xg_matmul(g, b, false, !tb);
    return tb ? xg_matmul(g, a, true, ta) : xg_matmul(a, g, !ta, false);
}

/* ---- 5.5 the convolution trio ---------------------------------------------------------------- */

static xg_window xg__window(xg_window k)
{
    if (!k.kh) k.kh = 1;
    if (!k.kw) k.kw = 1;
    if (!k.stride) k.stride = 1;
    if (!k.dilation) k.dilation = 1;
    if (!k.groups) k.groups = 1;
    return k;
}

/* How many windows fit along an axis; 0 when none does, or when the axis with its padding is too
 * long to be counted in int. */
static int xg__windows(int extent, int kernel, xg_window k)
{
    int64_t padded = (int64_t)extent + 2 * k.pad, covered = k.dilation * ((int64_t)kernel - 1) + 1;
    if (covered < 1 || covered > padded || padded > INT_MAX) return 0;
    return (int)((padded - covered) / k.stride) + 1;
}

/* Are the window's numbers usable? Refuses y if not. */
static bool xg__window_valid(const xg_tensor *y)
{
    const int most = 1 << 15;                  /* keeps products of two inside an int */
    xg_window k = y->attr.conv.window;
    if (k.kh > 0 && k.kw > 0 && k.stride > 0 && k.dilation > 0 && k.groups > 0 && k.pad >= 0 &&
        k.kh < most && k.kw < most && k.stride < most && k.dilation < most && k.pad < most) {
        return true;
    }
    return xg__refuse(y, XG_ERR_ARGUMENT, "a window number is negative or above 32767");
}

/* Checks x [n,c,h,w], w [o,c/groups,kh,kw], g [n,o,oh,ow] against one another. */
static bool xg__conv_fits(const xg_tensor *y, xg_shape x, xg_shape w, xg_shape g)
{
    xg_window k = y->attr.conv.window;
    if (!xg__window_valid(y)) return false;
    if (x.c % k.groups || x.c / k.groups != w.c) {
        return xg__refuse(y, XG_ERR_SHAPE, "channels differ");
    }
    if (w.n % k.groups) return xg__refuse(y, XG_ERR_SHAPE, "groups do not divide the outputs");
    if (g.n != x.n || g.c != w.n) return xg__refuse(y, XG_ERR_SHAPE, "batch or outputs differ");
    if (g.h < 1 || g.w < 1 || g.h != xg__windows(x.h, w.h, k) || g.w != xg__windows(x.w, w.w, k)) {
        return xg__refuse(y, XG_ERR_SHAPE, "the windows do not fit the input");
    }
    if ((double)x.h * x.w > INT_MAX || (double)w.h * w.w > INT_MAX || (double)g.h * g.w > INT_MAX) {
        return xg__refuse(y, XG_ERR_SHAPE, "a plane has more numbers than an int can count");
    }
    return true;
}

static bool xg__in_pairs(const xg_tensor *index, xg_shape s);

/* Whether g is what a max-pool of 2x2 sends back. Then gradients can be had from fewer numbers
 * (3.5.10, 3.6.3), unless these are gone and g itself is there. */
static bool xg__is_pooled(const xg_tensor *g)
{
    const xg_tensor *from = g->in[0], *at = g->in[1];
    if (g->op != XG_OP_scatter || !xg__in_pairs(at, g->shape)) return false;
    if (g->data && !(xg__is_there(from) && xg__is_there(at))) return false;
    return xg_shape_same(from->shape, at->shape);
}

static bool xg__force_operands(const xg_tensor *y)
{
    xg_tensor *b = y->in[1], *need[3] = { y->in[0], b, NULL };
    if ((y->op == XG_OP_conv2d_dw || y->op == XG_OP_conv2d_dx) && xg__is_pooled(b)) {
        need[1] = b->in[0];
        need[2] = b->in[1];
    }
    return xg__force_all(need, 3);
}

/* Chooses the way for a weight gradient behind a max-pool, by shapes alone: it wants pictures for
 * all workers, sums that fit a cache, and rows short enough to be counted in xg_real. */
static bool xg__pooled_pays(const xg__conv_job *job)
{
    return job->dilation == 1 && job->groups == 1 && job->n >= 8
        && 4.0 * (job->w + 2 * job->pad) * job->c * job->stride < 8388608.0
        && (double)job->o * job->c * job->kh * job->kw < 65536;
}

/* Runs one of the three; px, pw, pg point at the operands that it reads. */
static void xg__run_trio(xg_tensor *y, xg__conv_kind kind, xg_shape x, xg_shape w, xg_shape g)
{
    xg_window k = y->attr.conv.window;
    xg__conv_job job = XG__ZEROS;
    job.kind = kind;
    job.n = x.n; job.c = x.c; job.h = x.h; job.w = x.w;
    job.o = w.n; job.kh = w.h; job.kw = w.w;
    job.oh = g.h; job.ow = g.w;
    job.stride = k.stride; job.pad = k.pad; job.dilation = k.dilation; job.groups = k.groups;
    job.y = y->data;
    job.add = y->adds;
    if (y->attr.conv.finish) job.finish = *y->attr.conv.finish;
    job.winograd = xg__winograd_chosen(&job, y->tape->config.winograd);
    bool pays = kind == XG__CONV_DW ? xg__pooled_pays(&job) : kind == XG__CONV_DX && job.winograd;
    if (pays && xg__is_pooled(y->in[1])) {
        job.pg = y->in[1]->in[0]->data;
        job.at = y->in[1]->in[1]->data;
        if (kind == XG__CONV_DW) job.winograd = false;
    } else if (kind != XG__CONV) {
        if (!xg__force_all(y->in, 2)) return;
        job.pg = y->in[1]->data;
    }
    job.px = kind == XG__CONV_DX ? NULL : y->in[0]->data;
    job.pw = kind == XG__CONV ? y->in[1]->data : kind == XG__CONV_DX ? y->in[0]->data : NULL;
    xg_stats *counts = &y->tape->counts;
    counts->winograd += job.winograd;
    counts->flops += 2.0 * (double)xg_shape_size(w) * (double)x.n * (double)g.h * (double)g.w;

    const xg__kernels *kernels = y->tape->kernels;
    xg__team team;
    xg__place place = xg__arena_mark(&y->tape->arena);
    if (xg__team_open(y->tape, kernels->conv_scratch(&job, y->tape->config.workers), &team)) {
        kernels->conv(&job, &team);
    }
    xg__arena_release(&y->tape->arena, place);
}

static xg_tensor *xg__emit_window(xg_op op, xg_tensor *a, xg_tensor *b, xg_window k,
                                  xg_shape shape, bool waits)
{
    xg__attr attr;
    memset(&attr, 0, sizeof attr);
    attr.conv.window = xg__window(k);
    attr.conv.shape = shape;
    attr.conv.waits = waits;
    return xg__emit(op, a, b, &attr);
}

static xg_tensor *xg__emit_conv(xg_op op, xg_tensor *a, xg_tensor *b, xg_window k, xg_shape shape)
{
    return xg__emit_window(op, a, b, k, shape, false);
}

static bool xg__shape_conv2d(xg_tensor *y)
{
    xg_shape x = y->in[0]->shape, w = y->in[1]->shape;
    xg_window k = y->attr.conv.window;
    if (!xg__window_valid(y)) return false;
    y->shape = xg_shape4(x.n, w.n, xg__windows(x.h, w.h, k), xg__windows(x.w, w.w, k));
    return xg__conv_fits(y, x, w, y->shape);
}
static bool xg__waits_for_pool(const xg_tensor *y)
{
    xg_shape w = y->in[1]->shape;
    return w.h * w.w > 1 && w.c * w.h * w.w <= 300 && xg_size(y) >= (size_t)1 << 18;
}

static void xg__run_conv2d(xg_tensor *y)
{
    xg__run_trio(y, XG__CONV, y->in[0]->shape, y->in[1]->shape, y->shape);
}
XG_API_DEF xg_tensor *xg_conv2d(xg_tensor *x, xg_tensor *w, xg_window k)
{
    return xg__emit_conv(XG_OP_conv2d, x, w, k, xg__origin());
}
/* The same; waits for what follows (4.6.3). */
static xg_tensor *xg__conv2d_waiting(xg_tensor *x, xg_tensor *w, xg_window k)
{
    return xg__emit_window(XG_OP_conv2d, x, w, k, xg__origin(), true);
}
/* Of the gradient by an input, a constant, often only the sum over pictures is asked for (5.3). */
XG__RULE(conv2d)
{
    xg_tensor *x = y->in[0], *w = y->in[1];
    xg_window k = y->attr.conv.window;
    bool input = x->op == XG_OP_leaf || x->op == XG_OP_detach;
    if (i == 1) return xg_conv2d_dw(x, g, k, w->shape);
    if (!input || x->tape->last_sweep) return xg_conv2d_dx(w, g, k, x->shape);
    return xg__emit_window(XG_OP_conv2d_dx, w, g, k, x->shape, true);
}

static bool xg__shape_conv2d_dx(xg_tensor *y)
{
    y->shape = y->attr.conv.shape;
    return xg__conv_fits(y, y->shape, y->in[0]->shape, y->in[1]->shape);
}
static void xg__run_conv2d_dx(xg_tensor *y)
{
    xg__run_trio(y, XG__CONV_DX, y->shape, y->in[0]->shape, y->in[1]->shape);
}
XG_API_DEF xg_tensor *xg_conv2d_dx(xg_tensor *w, xg_tensor *g, xg_window k, xg_shape x)
{
    return xg__emit_conv(XG_OP_conv2d_dx, w, g, k, x);
}
XG__RULE(conv2d_dx)
{
    xg_tensor *w = y->in[0], *dy = y->in[1];
    xg_window k = y->attr.conv.window;
    return i == 0 ? xg_conv2d_dw(g, dy, k, w->shape) : xg_conv2d(g, w, k);
}

static bool xg__shape_conv2d_dw(xg_tensor *y)
{
    y->shape = y->attr.conv.shape;
    return xg__conv_fits(y, y->in[0]->shape, y->shape, y->in[1]->shape);
}
static void xg__run_conv2d_dw(xg_tensor *y)
{
    xg__run_trio(y, XG__CONV_DW, y->in[0]->shape, y->shape, y->in[1]->shape);
}
XG_API_DEF xg_tensor *xg_conv2d_dw(xg_tensor *x, xg_tensor *g, xg_window k, xg_shape w)
{
    return xg__emit_conv(XG_OP_conv2d_dw, x, g, k, w);
}
XG__RULE(conv2d_dw)
{
    xg_tensor *x = y->in[0], *dy = y->in[1];
    xg_window k = y->attr.conv.window;
    return i == 0 ? xg_conv2d_dx(g, dy, k, x->shape) : xg_conv2d(x, g, k);
}

/* ---- 5.6 windows ----------------------------------------------------------------------------- */

/* What the windows make of planes like x; false, and y is refused, if there is no such thing. */
static bool xg__pooled_shape(const xg_tensor *y, xg_shape x, xg_shape *pooled)
{
    xg_window k = y->attr.conv.window;
    if (!xg__window_valid(y)) return false;
    if (2 * k.pad > k.dilation * (k.kh - 1) + 1 || 2 * k.pad > k.dilation * (k.kw - 1) + 1) {
        return xg__refuse(y, XG_ERR_ARGUMENT, "padding is more than half the window");
    }
    *pooled = xg_shape4(x.n, x.c, xg__windows(x.h, k.kh, k), xg__windows(x.w, k.kw, k));
    if (pooled->h > 0 && pooled->w > 0) return true;
    return xg__refuse(y, XG_ERR_SHAPE, "the window is larger than the input");
}

static bool xg__shape_avgpool(xg_tensor *y)
{
    return xg__pooled_shape(y, y->in[0]->shape, &y->shape);
}

/* The windows k over planes of `in`, `out` of them. */
static xg__pool_job xg__pool_of(xg_window k, xg_shape in, xg_shape out)
{
    xg__pool_job job = { k, in.h, in.w, out.h, out.w, 0, 0, 1.0 / ((double)k.kh * k.kw) };
    int last = in.w - 1 - k.dilation * (k.kw - 1) + k.pad;     /* where the last may start */
    int inner = (k.pad + k.stride - 1) / k.stride, outer = last < 0 ? 0 : last / k.stride + 1;
    job.inner = inner < out.w ? inner : out.w;
    job.outer = outer < out.w ? outer : out.w;
    if (job.outer < job.inner) job.outer = job.inner;
    return job;
}

static void xg__avgpool_planes(const void *context, size_t begin, size_t end)
{
    const xg_tensor *y = (const xg_tensor *)context, *x = y->in[0];
    xg__pool_job pool = xg__pool_of(y->attr.conv.window, x->shape, y->shape);
    for (size_t plane = begin; plane < end; plane++) {
        y->tape->kernels->avgpool(&pool, x->data + plane * xg__plane(x),
                                  y->data + plane * xg__plane(y));
    }
}

static void xg__run_avgpool(xg_tensor *y)
{
    xg_window k = y->attr.conv.window;
    xg__for_planes(y, xg__plane(y) * (size_t)(k.kh * k.kw), xg__avgpool_planes);
}

XG_API_DEF xg_tensor *xg_avgpool(xg_tensor *x, xg_window k)
{
    return xg__emit_conv(XG_OP_avgpool, x, NULL, k, xg__origin());
}
XG__RULE(avgpool) { return xg_avgpool_t(g, y->attr.conv.window, y->in[i]->shape); }

static bool xg__shape_avgpool_t(xg_tensor *y)
{
    xg_shape g;
    y->shape = y->attr.conv.shape;
    if (!xg__pooled_shape(y, y->shape, &g)) return false;
    if (xg_shape_same(g, y->in[0]->shape)) return true;
    return xg__refuse(y, XG_ERR_SHAPE, "the windows do not fit the asked shape");
}

/* Adds the share of each window's g to a row of the plane. */
static void xg__avgpool_t_row(const xg__pool_job *job, const xg_real *g, xg_real *row)
{
    xg_window k = job->window;
    xg_real share = (xg_real)job->share;
    for (int ox = 0; ox < job->ow; ox++) {
        int c = ox * k.stride - k.pad, end = c + k.dilation * (k.kw - 1) + 1;
        xg_real part = g[ox] * share;
        if (ox < job->inner || ox >= job->outer) xg__clip(ox, k.kw, job->w, k, &c, &end);
        for (; c < end; c += k.dilation) row[c] += part;
    }
}

static void xg__avgpool_t_planes(const void *context, size_t begin, size_t end)
{
    const xg_tensor *y = (const xg_tensor *)context, *g = y->in[0];
    xg__pool_job pool = xg__pool_of(y->attr.conv.window, y->shape, g->shape);
    for (size_t plane = begin; plane < end; plane++) {
        const xg_real *from = g->data + plane * xg__plane(g);
        xg_real *to = y->data + plane * xg__plane(y);
        memset(to, 0, xg__plane(y) * sizeof *to);
        for (int oy = 0; oy < pool.oh; oy++, from += pool.ow) {
            int r, stop;
            xg__clip(oy, pool.window.kh, pool.h, pool.window, &r, &stop);
            for (; r < stop; r += pool.window.dilation) {
                xg__avgpool_t_row(&pool, from, to + (size_t)r * (size_t)pool.w);
            }
        }
    }
}

static void xg__run_avgpool_t(xg_tensor *y)
{
    xg_window k = y->attr.conv.window;
    xg__for_planes(y, xg__plane(y->in[0]) * (size_t)(k.kh * k.kw), xg__avgpool_t_planes);
}

XG_API_DEF xg_tensor *xg_avgpool_t(xg_tensor *g, xg_window k, xg_shape x)
{
    return xg__emit_conv(XG_OP_avgpool_t, g, NULL, k, x);
}
XG__RULE(avgpool_t) { return xg_avgpool(g, y->attr.conv.window); }

/* Does every window have a number of this axis? Dilated ones may step over all of a short one. */
static bool xg__windows_see(int extent, int kernel, xg_window k)
{
    int first = 0, end = 1;
    for (int i = 0; first < end && i < xg__windows(extent, kernel, k); i++) {
        xg__clip(i, kernel, extent, k, &first, &end);
    }
    return first < end;
}

static bool xg__shape_argpool(xg_tensor *y)
{
    xg_shape x = y->in[0]->shape;
    xg_window k = y->attr.conv.window;
    if ((double)x.h * x.w > 16777216.0) {
        return xg__refuse(y, XG_ERR_SHAPE, "planes above 2^24 numbers have no exact index");
    }
    if (!xg__pooled_shape(y, x, &y->shape)) return false;
    if (xg__windows_see(x.h, k.kh, k) && xg__windows_see(x.w, k.kw, k)) return true;
    return xg__refuse(y, XG_ERR_SHAPE, "a window meets no number of the input");
}

enum { XG__SLICE = 1 << 18 };                  /* numbers that are made at a time: a cache's */

/* Where the maxima are, and unless y is NULL the maxima. Planes that wait are taken as they are
 * made (4.6.2), each into its worker's room. */
typedef struct xg__argpool_job {
    const xg__kernels *kernels;
    xg__planes   planes;
    const xg_real *slice;                      /* planes from number `first` on; or NULL: all */
    size_t       first;
    xg__pool_job pool;
    xg_real     *index, *y, *room;
} xg__argpool_job;

static void xg__argpool_planes(const void *context, size_t begin, size_t end, int worker)
{
    const xg__argpool_job *job = (const xg__argpool_job *)context;
    size_t count = (size_t)job->pool.oh * (size_t)job->pool.ow;
    xg_real *room = job->room ? job->room + (size_t)worker * job->planes.size : NULL;
    xg__piece piece;
    if (!job->slice) xg__planes_begin(&job->planes, &piece);
    for (size_t i = begin; i < end; i++) {
        size_t to = (job->first + i) * count;
        const xg_real *x = job->slice ? job->slice + i * job->planes.size
                                      : xg__planes_at(&job->planes, &piece, i, room);
        job->kernels->argpool(&job->pool, x, job->index ? job->index + to : NULL,
                              job->y ? job->y + to : NULL);
    }
}

/* Planes that are in memory, or made one by one. */
static void xg__maxima_of_planes(xg__argpool_job *job, xg_tensor *x, size_t cost)
{
    xg_tape *tape = x->tape;
    if (!xg__planes_open(&job->planes, x)) return;
    xg__place place = xg__arena_mark(&tape->arena);
    size_t bytes = (size_t)tape->config.workers * job->planes.size * sizeof *job->room;
    if (job->planes.made) job->room = (xg_real *)xg__take(tape, bytes);
    if (job->room || !job->planes.made) {
        size_t planes = (size_t)x->shape.n * (size_t)x->shape.c;
        xg__share_out(tape, planes, cost, xg__argpool_planes, job);
    }
    xg__arena_release(&tape->arena, place);
}

/* The windows of most max-pools: of 2x2, side by side. */
static bool xg__is_pair_window(xg_window k)
{
    return k.kh == 2 && k.kw == 2 && k.stride == 2 && k.pad == 0 && k.dilation == 1;
}

/* Runs pictures [from, from + count) of a convolution with its ending (4.6.3). */
static void xg__run_pictures(const xg__ending *e, const xg__finish *f, int from, int count,
                             xg_real *to)
{
    xg_tensor part = *e->conv, x = *e->conv->in[0];
    size_t winograd = x.tape->counts.winograd;
    x.data += (size_t)from * xg_size(&x) / (size_t)x.shape.n;
    x.shape.n = part.shape.n = count;
    part.in[0] = &x;
    part.data = to;
    part.attr.conv.finish = f;
    xg__run_conv2d(&part);
    if (from > 0) x.tape->counts.winograd = winograd;  /* it counts once */
}

/* Planes of a convolution that waits: the pool is part of its ending, or if it cannot be, as many
 * pictures at a time as a cache holds. */
static void xg__maxima_of_pictures(xg__argpool_job *job, xg_tensor *x, const xg__ending *e,
                                   size_t cost)
{
    xg_tape *tape = x->tape;
    const size_t channels = (size_t)x->shape.c, plane = xg__plane(x);
    int count = (int)xg__min(XG__SLICE / (channels * plane) + 1, (size_t)x->shape.n);
    xg__finish f;
    if (!xg__ending_finish(e, &f)) return;
    if (xg__is_pair_window(job->pool.window) && x->shape.h % 2 == 0 && x->shape.w % 2 == 0) {
        f.places = job->index;
        f.maxima = job->y;
        xg__run_pictures(e, &f, 0, x->shape.n, NULL);
        xg__retire(e->conv->in[0]);
        return;
    }
    xg__place place = xg__arena_mark(&tape->arena);
    xg_real *slice = (xg_real *)xg__take(tape, (size_t)count * channels * plane * sizeof *slice);
    job->slice = slice;
    job->planes.size = plane;
    for (int from = 0; slice && from < x->shape.n && !xg_failed(tape); from += count) {
        int n = from + count < x->shape.n ? count : x->shape.n - from;
        xg__run_pictures(e, &f, from, n, slice);
        job->first = (size_t)from * channels;
        if (!xg_failed(tape)) {
            xg__share_out(tape, (size_t)n * channels, cost, xg__argpool_planes, job);
        }
    }
    xg__arena_release(&tape->arena, place);
    xg__retire(e->conv->in[0]);
}

static void xg__run_maxima(xg_tensor *x, const xg_tensor *index, xg_real *to_index, xg_real *y)
{
    xg_window k = index->attr.conv.window;
    size_t cost = xg__plane(index) * (size_t)(k.kh * k.kw);
    xg__argpool_job job;
    xg__ending ending;
    job.kernels = x->tape->kernels;
    job.slice = NULL;
    job.first = 0;
    job.room = NULL;
    job.pool = xg__pool_of(k, x->shape, index->shape);
    job.index = to_index;
    job.y = y;
    if (xg__ending_of(x, &ending) && !ending.more) {
        xg__maxima_of_pictures(&job, x, &ending, cost);
    } else {
        xg__maxima_of_planes(&job, x, cost);
    }
}

static void xg__run_argpool(xg_tensor *y) { xg__run_maxima(y->in[0], y, y->data, NULL); }

XG_API_DEF xg_tensor *xg_argpool(xg_tensor *x, xg_window k)
{
    return xg__emit_conv(XG_OP_argpool, x, NULL, k, xg__origin());
}
XG_API_DEF xg_tensor *xg_maxpool(xg_tensor *x, xg_window k)
{
    return xg_gather(x, xg_argpool(x, k));
}
XG_API_DEF xg_tensor *xg_global_avgpool(xg_tensor *x)
{
    xg_shape s = xg_shape_of(x);
    return xg_mean_to(x, xg_shape4(s.n, s.c, 1, 1));
}

/* Bilinear interpolation at half-pixel centres: output o reads at
 * s = max(0, (o + 1/2) in/out - 1/2), between floor(s) and the next, the last one repeated. */
typedef struct xg__tap { int low, high; double t; } xg__tap;

static const xg__tap *xg__taps(xg_tape *tape, int in, int out)
{
    xg__tap *taps = (xg__tap *)xg__take(tape, (size_t)out * sizeof *taps);
    for (int o = 0; taps && o < out; o++) {
        double s = ((double)o + 0.5) * in / out - 0.5;
        if (s < 0) s = 0;
        int low = (int)s < in ? (int)s : in - 1;
        taps[o].low = low;
        taps[o].high = low + 1 < in ? low + 1 : low;
        taps[o].t = s - low;
    }
    return taps;
}

/* Both directions between small planes and large ones know where each row and column reads. */
typedef struct xg__upsample_job {
    const xg_tensor *x, *y;
    const xg__tap *rows, *columns;             /* of the large plane */
} xg__upsample_job;

static void xg__run_taps(xg_tensor *y, xg_shape small, xg_shape large,
                         void (*run)(const void *job, size_t begin, size_t end))
{
    xg__upsample_job job = { y->in[0], y, NULL, NULL };
    xg__place place = xg__arena_mark(&y->tape->arena);
    job.rows = xg__taps(y->tape, small.h, large.h);
    job.columns = xg__taps(y->tape, small.w, large.w);
    if (job.rows && job.columns) {
        size_t cost = (size_t)large.h * (size_t)large.w * 8;
        xg__parallel(y->tape, (size_t)large.n * (size_t)large.c, cost, run, &job);
    }
    xg__arena_release(&y->tape->arena, place);
}

static bool xg__shape_upsample(xg_tensor *y)
{
    xg_shape x = y->in[0]->shape, s = y->attr.to.shape;
    y->shape = xg_shape4(x.n, x.c, s.h, s.w);
    if (s.h > 0 && s.w > 0) return true;
    return xg__refuse(y, XG_ERR_ARGUMENT, "the new extents must be at least 1");
}

static void xg__upsample_planes(const void *context, size_t begin, size_t end)
{
    const xg__upsample_job *job = (const xg__upsample_job *)context;
    xg_shape in = job->x->shape, out = job->y->shape;
    for (size_t plane = begin; plane < end; plane++) {
        const xg_real *x = job->x->data + plane * xg__plane(job->x);
        xg_real *y = job->y->data + plane * xg__plane(job->y);
        for (int oy = 0; oy < out.h; oy++) {
            xg__tap v = job->rows[oy];
            const xg_real *top = x + (size_t)v.low * (size_t)in.w;
            const xg_real *bottom = x + (size_t)v.high * (size_t)in.w;
            for (int ox = 0; ox < out.w; ox++) {
                xg__tap u = job->columns[ox];
                double a = (1 - u.t) * (double)top[u.low] + u.t * (double)top[u.high];
                double b = (1 - u.t) * (double)bottom[u.low] + u.t * (double)bottom[u.high];
                *y++ = (xg_real)((1 - v.t) * a + v.t * b);
            }
        }
    }
}

static void xg__run_upsample(xg_tensor *y)
{
    xg__run_taps(y, y->in[0]->shape, y->shape, xg__upsample_planes);
}

XG_API_DEF xg_tensor *xg_upsample(xg_tensor *x, int h, int w)
{
    return xg__emit_to(XG_OP_upsample, x, NULL, xg_shape4(1, 1, h, w));
}
XG__RULE(upsample) { return xg_upsample_t(g, y->in[i]->shape); }

static bool xg__shape_upsample_t(xg_tensor *y)
{
    xg_shape g = y->in[0]->shape;
    y->shape = y->attr.to.shape;
    if (g.n == y->shape.n && g.c == y->shape.c) return true;
    return xg__refuse(y, XG_ERR_SHAPE, "batch and channels must stay the same");
}

static void xg__upsample_t_planes(const void *context, size_t begin, size_t end)
{
    const xg__upsample_job *job = (const xg__upsample_job *)context;
    xg_shape small = job->y->shape, large = job->x->shape;
    for (size_t plane = begin; plane < end; plane++) {
        const xg_real *g = job->x->data + plane * xg__plane(job->x);
        xg_real *y = job->y->data + plane * xg__plane(job->y);
        memset(y, 0, xg__plane(job->y) * sizeof *y);
        for (int oy = 0; oy < large.h; oy++) {
            xg__tap v = job->rows[oy];
            xg_real *top = y + (size_t)v.low * (size_t)small.w;
            xg_real *bottom = y + (size_t)v.high * (size_t)small.w;
            for (int ox = 0; ox < large.w; ox++) {
                xg__tap u = job->columns[ox];
                double up = (1 - v.t) * (double)*g, down = v.t * (double)*g;
                g++;
                top[u.low]     += (xg_real)(up * (1 - u.t));
                top[u.high]    += (xg_real)(up * u.t);
                bottom[u.low]  += (xg_real)(down * (1 - u.t));
                bottom[u.high] += (xg_real)(down * u.t);
            }
        }
    }
}

static void xg__run_upsample_t(xg_tensor *y)
{
    xg__run_taps(y, y->shape, y->in[0]->shape, xg__upsample_t_planes);
}

XG_API_DEF xg_tensor *xg_upsample_t(xg_tensor *g, xg_shape x)
{
    return xg__emit_to(XG_OP_upsample_t, g, NULL, x);
}
XG__RULE(upsample_t)
{
    xg_shape s = y->in[i]->shape;
    return xg_upsample(g, s.h, s.w);
}

/* ---- 5.7 selection --------------------------------------------------------------------------- */

/* Are all indices inside the plane? Those of the maxima of planes no larger are. */
static bool xg__index_valid(const xg_tensor *y, size_t plane)
{
    const xg_tensor *index = y->in[1];
    if (index->op == XG_OP_argpool && xg__plane(index->in[0]) <= plane) return true;
    for (size_t i = 0, size = xg_size(index); i < size; i++) {
        double at = (double)index->data[i];
        if (!(at >= 0 && at < (double)plane)) {
            return xg__refuse(y, XG_ERR_ARGUMENT, "an index lies outside the plane");
        }
    }
    return true;
}

/* Data is looked at here, once; indices that operations make, when their numbers are there. */
static bool xg__index_fits(const xg_tensor *y, xg_shape x)
{
    const xg_tensor *index = y->in[1];
    xg_shape s = index->shape;
    if ((s.n != 1 && s.n != x.n) || (s.c != 1 && s.c != x.c)) {
        return xg__refuse(y, XG_ERR_SHAPE, "the index must have the batch and channels of x, or 1");
    }
    return index->op != XG_OP_leaf || xg__index_valid(y, (size_t)x.h * (size_t)x.w);
}

/* Makes what gather and scatter read, and looks at it. */
static bool xg__force_indexed(xg_tensor *y, size_t plane)
{
    if (!xg__force_all(y->in, 2)) return false;
    return y->in[1]->op == XG_OP_leaf || xg__index_valid(y, plane);
}

static bool xg__shape_gather(xg_tensor *y)
{
    xg_shape x = y->in[0]->shape, index = y->in[1]->shape;
    y->shape = xg_shape4(x.n, x.c, index.h, index.w);
    return xg__index_fits(y, x);
}

/* The index that gather and scatter follow in a plane of y. */
static const xg_real *xg__index_plane(const xg_tensor *y, size_t plane)
{
    const size_t channels = (size_t)y->shape.c;
    return xg__row_of(y->in[1], (int)(plane / channels), (int)(plane % channels), 0);
}

/* Whether the index is that of maxima of 2x2 windows, side by side, over planes of this shape: then
 * gather and scatter walk the windows, which is faster than to go where each index says. */
static bool xg__in_pairs(const xg_tensor *index, xg_shape s)
{
    if (index->op != XG_OP_argpool) return false;
    xg_shape pooled = index->in[0]->shape;
    return pooled.h == s.h && pooled.w == s.w && xg__is_pair_window(index->attr.conv.window);
}

/* A max-pool: gather of x at argpool of the same x. */
static bool xg__is_maxpool(const xg_tensor *node)
{
    return node->op == XG_OP_gather && node->in[1]->op == XG_OP_argpool &&
           node->in[1]->in[0] == node->in[0];
}

static void xg__gather_planes(const void *context, size_t begin, size_t end)
{
    const xg_tensor *y = (const xg_tensor *)context, *x = y->in[0];
    size_t count = xg__plane(y);
    for (size_t plane = begin; plane < end; plane++) {
        const xg_real *from = x->data + plane * xg__plane(x), *at = xg__index_plane(y, plane);
        xg_real *to = y->data + plane * count;
        for (size_t p = 0; p < count; p++) to[p] = from[(size_t)at[p]];
    }
}

/* Both ways between planes and the maxima of their 2x2 windows. */
static void xg__pairs_planes(const void *context, size_t begin, size_t end)
{
    const xg_tensor *y = (const xg_tensor *)context, *x = y->in[0], *index = y->in[1];
    const bool pick = y->op == XG_OP_gather;
    const xg__kernels *kernels = y->tape->kernels;
    xg__pool_job pool = xg__pool_of(index->attr.conv.window, pick ? x->shape : y->shape,
                                    index->shape);
    for (size_t plane = begin; plane < end; plane++) {
        (pick ? kernels->pick_pairs : kernels->place_pairs)
            (&pool, x->data + plane * xg__plane(x), xg__index_plane(y, plane),
             y->data + plane * xg__plane(y));
    }
}

/* A max-pool whose places are not known yet: both at once, or without the places if no gradient
 * will read them. Who asks for them all the same has them made. */
static void xg__run_maxpool(xg_tensor *y)
{
    xg_tensor *index = y->in[1];
    xg_real *places = y->constant ? NULL : xg__take_numbers(index);
    if (!places && !y->constant) return;
    xg__run_maxima(y->in[0], index, places, y->data);
    if (places && !xg_failed(y->tape)) xg__settle(index, places);
}

static void xg__run_gather(xg_tensor *y)
{
    if (xg__is_maxpool(y) && !y->in[1]->data) {
        xg__run_maxpool(y);
        return;
    }
    if (!xg__force_indexed(y, xg__plane(y->in[0]))) return;
    bool pairs = xg__in_pairs(y->in[1], y->in[0]->shape);
    xg__for_planes(y, xg__plane(y), pairs ? xg__pairs_planes : xg__gather_planes);
}

XG_API_DEF xg_tensor *xg_gather(xg_tensor *x, xg_tensor *index)
{
    return xg__emit(XG_OP_gather, x, index, NULL);
}
XG__RULE(gather) { return i == 0 ? xg_scatter(g, y->in[1], y->in[0]->shape) : NULL; }

static bool xg__shape_scatter(xg_tensor *y)
{
    xg_shape g = y->in[0]->shape, index = y->in[1]->shape;
    y->shape = y->attr.to.shape;
    if (g.n != y->shape.n || g.c != y->shape.c || g.h != index.h || g.w != index.w) {
        return xg__refuse(y, XG_ERR_SHAPE, "the cotangent must be shaped like the gathered tensor");
    }
    return xg__index_fits(y, y->shape);
}

static void xg__scatter_planes(const void *context, size_t begin, size_t end)
{
    const xg_tensor *y = (const xg_tensor *)context, *g = y->in[0];
    size_t count = xg__plane(g);
    for (size_t plane = begin; plane < end; plane++) {
        const xg_real *from = g->data + plane * count, *at = xg__index_plane(y, plane);
        xg_real *to = y->data + plane * xg__plane(y);
        memset(to, 0, xg__plane(y) * sizeof *to);
        for (size_t p = 0; p < count; p++) to[(size_t)at[p]] += from[p];
    }
}

static void xg__run_scatter(xg_tensor *y)
{
    if (!xg__force_indexed(y, xg__plane(y))) return;
    bool pairs = xg__in_pairs(y->in[1], y->shape);
    xg__for_planes(y, xg__plane(y) + xg__plane(y->in[0]),
                   pairs ? xg__pairs_planes : xg__scatter_planes);
}

XG_API_DEF xg_tensor *xg_scatter(xg_tensor *g, xg_tensor *index, xg_shape x)
{
    return xg__emit_to(XG_OP_scatter, g, index, x);
}
XG__RULE(scatter) { return i == 0 ? xg_gather(g, y->in[1]) : NULL; }

static bool xg__shape_argmax(xg_tensor *y)
{
    xg_shape x = y->in[0]->shape;
    y->shape = xg_shape4(x.n, 1, x.h, x.w);
    return true;
}

/* Units are samples. */
static void xg__argmax_range(const void *context, size_t begin, size_t end)
{
    const xg_tensor *y = (const xg_tensor *)context, *x = y->in[0];
    size_t plane = xg__plane(x), channels = (size_t)x->shape.c;
    for (size_t n = begin; n < end; n++) {
        const xg_real *from = x->data + n * channels * plane;
        for (size_t p = 0; p < plane; p++) {
            size_t best = 0;
            for (size_t c = 1; c < channels; c++) {
                if (from[c * plane + p] > from[best * plane + p]) best = c;
            }
            y->data[n * plane + p] = (xg_real)best;
        }
    }
}

static void xg__run_argmax(xg_tensor *y)
{
    size_t cost = xg__plane(y->in[0]) * (size_t)y->in[0]->shape.c * 4;
    xg__parallel(y->tape, (size_t)y->shape.n, cost, xg__argmax_range, y);
}

/* Samples become numbers of a plane, of which gather takes the same ones everywhere. */
XG_API_DEF xg_tensor *xg_take(xg_tensor *x, const int *sample, int count)
{
    xg_shape s = xg_shape_of(x);
    const int most = s.n < 1 << 24 ? s.n : 1 << 24;        /* beyond, xg_real has no exact index */
    xg_tensor *index = xg_leaf(xg_tape_of(x), xg_shape4(1, 1, count, 1), NULL);
    xg_real *to = xg_leaf_data(index);
    for (int i = 0; to && i < count; i++) {
        if (sample[i] < 0 || sample[i] >= most) {
            xg_fail(x->tape, XG_ERR_ARGUMENT, "take: sample %d is not in [0, %d)", sample[i], most);
            return xg__poison(x->tape);
        }
        to[i] = (xg_real)sample[i];
    }
    xg_tensor *rows = xg_permute(xg_flatten(x), 2, 1, 0, 3);
    xg_tensor *taken = xg_permute(xg_gather(rows, index), 2, 1, 0, 3);
    return xg_reshape(taken, xg_shape4(count, s.c, s.h, s.w));
}

XG_API_DEF xg_tensor *xg_argmax(xg_tensor *x) { return xg__emit1(XG_OP_argmax, x); }

static bool xg__shape_max_to(xg_tensor *y) { return xg__shape_sum_to(y); }

static void xg__run_max_to(xg_tensor *y)
{
    const xg_tensor *x = y->in[0];
    xg_shape s = x->shape;
    const xg_real *in = x->data;
    for (size_t i = 0, size = xg_size(y); i < size; i++) y->data[i] = (xg_real)-INFINITY;
    for (int n = 0; n < s.n; n++) {
        for (int c = 0; c < s.c; c++) {
            for (int h = 0; h < s.h; h++, in += s.w) {
                xg_real *out = xg__row_of(y, n, c, h);
                for (int w = 0; w < s.w; w++) {
                    xg_real *best = out + (y->shape.w == 1 ? 0 : w);
                    if (in[w] > *best || in[w] != in[w]) *best = in[w];
                }
            }
        }
    }
}

XG_API_DEF xg_tensor *xg_max_to(xg_tensor *x, xg_shape s)
{
    return xg__emit_to(XG_OP_max_to, x, NULL, s);
}
XG__RULE(max_to)
{
    xg_tensor *x = y->in[i];
    xg_tensor *winners = xg_affine(xg_less(x, y), -1, 1);
    return xg_gate(xg_div(g, xg_sum_to(winners, y->shape)), winners);
}

static bool xg__shape_topk_threshold(xg_tensor *y)
{
    xg_shape x = y->in[0]->shape;
    int k = y->attr.one.value;
    y->shape = xg_shape4(x.n, 1, 1, 1);
    if (k >= 1 && (size_t)k <= xg__plane(y->in[0]) * (size_t)x.c) return true;
    return xg__refuse(y, XG_ERR_ARGUMENT, "k must be between 1 and the numbers of a sample");
}

/* NaN comes first, so that it is seen. */
static int xg__descending(const void *a, const void *b)
{
    xg_real x = *(const xg_real *)a, y = *(const xg_real *)b;
    if (x != x || y != y) return (y != y) - (x != x);
    return x < y ? 1 : x > y ? -1 : 0;
}

static void xg__run_topk_threshold(xg_tensor *y)
{
    const xg_tensor *x = y->in[0];
    size_t size = xg__plane(x) * (size_t)x->shape.c, k = (size_t)y->attr.one.value;
    xg__place place = xg__arena_mark(&y->tape->arena);
    xg_real *sorted = (xg_real *)xg__take(y->tape, size * sizeof *sorted);
    for (int n = 0; sorted && n < x->shape.n; n++) {
        memcpy(sorted, x->data + (size_t)n * size, size * sizeof *sorted);
        qsort(sorted, size, sizeof *sorted, xg__descending);
        double last = (double)sorted[k - 1];       /* all of them: one below the smallest */
        double next = k < size ? (double)sorted[k] : last - 2;
        y->data[n] = (xg_real)(last / 2 + next / 2);
    }
    xg__arena_release(&y->tape->arena, place);
}

XG_API_DEF xg_tensor *xg_topk_threshold(xg_tensor *x, int k)
{
    xg__attr attr;
    attr.one.value = k;
    return xg__emit(XG_OP_topk_threshold, x, NULL, &attr);
}

XG_API_DEF xg_tensor *xg_pick(xg_tensor *logits, const int *label)
{
    xg_shape s = xg_shape_of(logits);
    return xg_sum_to(xg_mul(logits, xg_one_hot(xg_tape_of(logits), label, s.n, s.c)),
                     xg_shape4(s.n, 1, s.h, s.w));
}

XG_API_DEF xg_tensor *xg_margin(xg_tensor *logits, const int *label)
{
    xg_tape *tape = xg_tape_of(logits);
    xg_shape s = xg_shape_of(logits);
    if (!xg_failed(tape) && (s.c != 2 || s.h != 1 || s.w != 1)) {
        xg_fail(tape, XG_ERR_SHAPE, "margin: there must be two logits for each sample, not "
                "[%d %d %d %d]", s.n, s.c, s.h, s.w);
    }
    xg_tensor *sign = xg_affine(xg_one_hot(tape, label, s.n, 2), 2, -1);
    return xg_sum_to(xg_mul(logits, sign), xg_shape4(s.n, 1, 1, 1));
}

/* ---- 5.8 fused ------------------------------------------------------------------------------- */

/* softmax and log_softmax: less the maximum, which is stable; powers of that and their sum; the
 * quotient, or the difference of logarithms. Pixels are worked on side by side; where there is one,
 * its channels lie side by side, and samples are. */
typedef struct xg__softmax_job {
    const xg_tensor *y;
    xg_real *powers;                           /* softmax: y's own numbers */
    xg__zip_row finish;                        /* div or sub */
    bool logs;
} xg__softmax_job;

enum { XG__MANY = 32 };                        /* fewer numbers are not worth a kernel's start */

static void xg__less_max(const xg__kernels *kernels, const xg_real *x, xg_real *y, size_t n)
{
    xg_real best = x[0];
    for (size_t i = 1; i < n; i++) if (x[i] > best) best = x[i];
    if (n >= XG__MANY) kernels->zip[XG__ZIP_sub](x, 1, &best, 0, y, n);
    else for (size_t i = 0; i < n; i++) y[i] = x[i] - best;
}

static double xg__row_sum(const xg__kernels *kernels, const xg_real *x, size_t n)
{
    double lane[16], sum = 0;
    for (size_t i = 0; i < n && n < XG__MANY; i++) sum += (double)x[i];
    if (n < XG__MANY) return sum;
    memset(lane, 0, sizeof lane);
    kernels->sum_lanes(lane, x, n);
    return xg__lanes_sum(lane);
}

/* Units are samples of one pixel. */
static void xg__softmax_samples(const void *context, size_t begin, size_t end)
{
    const xg__softmax_job *job = (const xg__softmax_job *)context;
    const xg__kernels *kernels = job->y->tape->kernels;
    const xg_real *x = job->y->in[0]->data;
    size_t n = (size_t)job->y->shape.c, first = begin * n;
    xg_real *y = job->y->data;
    for (size_t i = begin; i < end; i++) xg__less_max(kernels, x + i * n, y + i * n, n);
    kernels->map[XG__MAP_exp](y + first, job->powers + first, end * n - first, 0, 0);
    for (size_t i = begin; i < end; i++) {
        double sum = xg__row_sum(kernels, job->powers + i * n, n);
        xg_real *row = y + i * n, total = (xg_real)(job->logs ? log(sum) : sum);
        if (n >= XG__MANY) job->finish(row, 1, &total, 0, row, n);
        else if (job->logs) for (size_t c = 0; c < n; c++) row[c] -= total;
        else for (size_t c = 0; c < n; c++) row[c] /= total;
    }
}

/* A chunk of n pixels, whose first channel starts at number `at`. */
static void xg__softmax_chunk(const xg__softmax_job *job, size_t at, size_t n)
{
    const xg__kernels *kernels = job->y->tape->kernels;
    size_t plane = xg__plane(job->y), end = at + (size_t)job->y->shape.c * plane;
    const xg_real *x = job->y->in[0]->data;
    xg_real *y = job->y->data, total[XG__CHUNK];
    double sum[XG__CHUNK];
    memcpy(total, x + at, n * sizeof *total);  /* the maximum, first */
    for (size_t i = at + plane; i < end; i += plane) {
        kernels->zip[XG__ZIP_max](x + i, 1, total, 1, total, n);
    }
    memset(sum, 0, n * sizeof *sum);
    for (size_t i = at; i < end; i += plane) {
        kernels->zip[XG__ZIP_sub](x + i, 1, total, 1, y + i, n);
        kernels->map[XG__MAP_exp](y + i, job->powers + i, n, 0, 0);
        kernels->sum_each(sum, job->powers + i, n);
    }
    for (size_t i = 0; i < n; i++) total[i] = (xg_real)(job->logs ? log(sum[i]) : sum[i]);
    for (size_t i = at; i < end; i += plane) job->finish(y + i, 1, total, 1, y + i, n);
}

/* Units are chunks of the pixels of a sample. */
static void xg__softmax_chunks(const void *context, size_t begin, size_t end)
{
    const xg__softmax_job *job = (const xg__softmax_job *)context;
    size_t plane = xg__plane(job->y), chunks = (plane + XG__CHUNK - 1) / XG__CHUNK;
    for (size_t unit = begin; unit < end; unit++) {
        size_t first = unit % chunks * XG__CHUNK;
        xg__softmax_chunk(job, unit / chunks * (size_t)job->y->shape.c * plane + first,
                          xg__min(plane - first, XG__CHUNK));
    }
}

static void xg__softmaxes(xg_tensor *y, xg_real *powers, bool logs)
{
    xg__zip_row finish = y->tape->kernels->zip[logs ? XG__ZIP_sub : XG__ZIP_div];
    xg__softmax_job job = { y, powers, finish, logs };
    size_t samples = (size_t)y->shape.n, plane = xg__plane(y);
    size_t chunks = (plane + XG__CHUNK - 1) / XG__CHUNK;
    size_t cost = xg__min(plane, XG__CHUNK) * (size_t)y->shape.c * 8 + XG__START;
    xg__parallel(y->tape, samples * chunks, cost,
                 plane == 1 ? xg__softmax_samples : xg__softmax_chunks, &job);
}

static bool xg__shape_softmax(xg_tensor *y) { return xg__shape_map(y); }

static void xg__run_softmax(xg_tensor *y) { xg__softmaxes(y, y->data, false); }

XG_API_DEF xg_tensor *xg_softmax(xg_tensor *x) { return xg__emit1(XG_OP_softmax, x); }
XG__RULE(softmax)
{
    xg_shape s = xg__with_extent(y->shape, 1, 1);
    return xg_mul(y, xg_sub(g, xg_sum_to(xg_mul(g, y), s)));
}

static bool xg__shape_log_softmax(xg_tensor *y) { return xg__shape_map(y); }

static void xg__run_log_softmax(xg_tensor *y)
{
    xg__place place = xg__arena_mark(&y->tape->arena);
    xg_real *powers = xg__take_numbers(y);
    if (powers) xg__softmaxes(y, powers, true);
    xg__arena_release(&y->tape->arena, place);
}

XG_API_DEF xg_tensor *xg_log_softmax(xg_tensor *x) { return xg__emit1(XG_OP_log_softmax, x); }
XG__RULE(log_softmax)
{
    return xg_sub(g, xg_mul(xg_exp(y), xg_sum_to(g, xg__with_extent(y->shape, 1, 1))));
}

XG_API_DEF xg_tensor *xg_normalise(xg_tensor *x, xg_shape s, double eps)
{
    xg_tensor *centred = xg_sub(x, xg_mean_to(x, s));
    xg_tensor *variance = xg_mean_to(xg_square(centred), s);
    return xg_mul(centred, xg_pow(xg_affine(variance, 1, eps), -0.5));
}

XG_API_DEF xg_tensor *xg_cross_entropy(xg_tensor *logits, const int *label,
                                       const double *class_weight)
{
    xg_tape *tape = xg_tape_of(logits);
    xg_shape s = xg_shape_of(logits);
    xg_tensor *target = xg_one_hot(tape, label, s.n, s.c);
    xg_real *t = xg_leaf_data(target);
    double total = s.n;
    if (t && class_weight) {                   /* one-hot rows, each scaled by its class's weight */
        total = 0;
        for (int i = 0; i < s.n; i++) {
            t[(size_t)i * (size_t)s.c + (size_t)label[i]] = (xg_real)class_weight[label[i]];
            total += class_weight[label[i]];
        }
        if (!(total > 0)) xg_fail(tape, XG_ERR_ARGUMENT, "cross_entropy: the class weights of this "
                                  "batch sum to %g", total);
    }
    return xg_affine(xg_dot(target, xg_log_softmax(logits)), -1 / total, 0);
}

XG_API_DEF xg_tensor *xg_bce_with_logits(xg_tensor *logits, xg_tensor *target)
{
    return xg_mean(xg_sub(xg_softplus(logits), xg_mul(logits, target)));
}

/* ---- 5.9 control ----------------------------------------------------------------------------- */

static bool xg__shape_detach(xg_tensor *y) { return xg__shape_map(y); }
XG_API_DEF xg_tensor *xg_detach(xg_tensor *x) { return xg__emit1(XG_OP_detach, x); }

static bool xg__shape_barrier(xg_tensor *y) { return xg__shape_map(y); }
XG_API_DEF xg_tensor *xg_barrier(xg_tensor *x) { return xg__emit1(XG_OP_barrier, x); }
XG__RULE(barrier) { return g; }

/* ---- the table of rooms, from the list ------------------------------------------------------- */

#define xg__shape_leaf NULL                    /* leaves are recorded by 4.9, never emitted */
#define xg__run_leaf NULL

#define XG__ROOM_map(name) xg__shape_map, NULL, XG__LATER_MAP, XG__MAP_##name
#define XG__ROOM_zip(name) xg__shape_zip, NULL, XG__LATER_ZIP, XG__ZIP_##name
#define XG__ROOM_fan(name) xg__shape_##name, NULL, XG__LATER_MAP, XG__MAP_affine
#define XG__ROOM_sum(name) xg__shape_##name, xg__run_##name, XG__LATER_SUM, 0
#define XG__ROOM_view(name) xg__shape_##name, NULL, XG__VIEW, 0
#define XG__ROOM_own(name) xg__shape_##name, xg__run_##name, XG__NOW, 0
#define XG__ROOM_late(name) xg__shape_##name, xg__run_##name, XG__LATER_OWN, 0
#define XG__RULE_rule(name) xg__vjp_##name
#define XG__RULE_none(name) NULL

static const xg__room *xg__room_of(xg_op op)
{
    static const xg__room rooms[XG_OP_COUNT] = {
#define X(name, operands, kernel, gradient, formula)                                               \
        { #name, formula, operands, XG__ROOM_##kernel(name), XG__RULE_##gradient(name) },
        XG_OPS(X)
#undef X
    };
    return &rooms[op];
}

XG_API_DEF const char *xg_op_name(xg_op op)
{
    return (unsigned)op < XG_OP_COUNT ? xg__room_of(op)->name : "?";
}

XG_API_DEF const char *xg_op_formula(xg_op op)
{
    return (unsigned)op < XG_OP_COUNT ? xg__room_of(op)->formula : "?";
}

/* ============================================================================================== *
 *  [6] readings                                                                                  *
 * ============================================================================================== */

/* 6.1 The gradient sweep. It visits the nodes between the requested inputs and y, latest first, and
 *     asks each node's rule for the cotangent of each operand that leads to an input. */

/* Marks what depends on one of the inputs with a fresh number; returns the earliest input. */
static xg_tensor *xg__walk_begin(xg_tape *tape, xg_tensor *const *x, int count)
{
    xg_tensor *earliest = NULL;
    int number = ++tape->walks;
    for (int i = 0; i < count; i++) {
        x[i]->walk.number = number;
        if (!earliest || x[i]->id < earliest->id) earliest = x[i];
    }
    for (xg_tensor *node = earliest; node; node = node->next) {
        bool depends = node->walk.number == number;
        for (int i = 0; i < 2 && !depends; i++) {
            depends = node->in[i] && node->in[i]->walk.number == number;
        }
        if (!depends) continue;
        node->walk.number = number;
        node->walk.leads = false;
        node->walk.first = node->walk.second = NULL;
    }
    return earliest;
}

/* What every reading needs: good tensors of one tape. */
static bool xg__walk_allowed(const char *reading, xg_tensor *y, xg_tensor *const *x, int count)
{
    xg_tape *tape = y ? y->tape : NULL;
    if (xg_failed(tape)) return false;
    bool poison = xg__is_poison(y);
    for (int i = 0; i < count; i++) {
        poison = poison || xg__is_poison(x[i]);
        if (!poison && x[i]->tape != tape) {
            xg_fail(tape, XG_ERR_TAPE, "%s: its tensors live on different tapes", reading);
            return false;
        }
    }
    if (poison) xg_fail(tape, XG_ERR_ARGUMENT, "%s: a tensor is missing or failed", reading);
    return !poison;
}

/* 6.1.1 What an earlier sweep found. Rules are linear in the cotangent: what sent g0 on as part0
 *     sends f g0 on as f part0, for a number f, and for a number f a sample where samples do not
 *     meet on the way. So each node remembers the last gradient that passed it, and when a multiple
 *     of the same cotangent comes along, its parts are taken over and no convolution runs. That
 *     happens where a loss is built on a score that was explained: with one logit, or two classes
 *     explained by their margin, the pass that trains the answer costs nothing, or only its weight
 *     gradients (6.1.2). A sweep's root has the cotangent 1, of which anything is a multiple. */

/* x times a factor, one number or one a sample, which x counts along an axis (0, or 2 as rows). */
static xg_tensor *xg__scaled(xg_tensor *x, xg_tensor *factor, int axis)
{
    xg_shape s = xg_shape_of(factor);
    xg_tensor *y = xg_mul(x, axis == 0 ? factor : xg_reshape(factor, xg_shape4(1, 1, s.n, 1)));
    if (xg__is_poison(y)) return y;
    xg__hold(factor);                          /* later multiples of x find it through y */
    y->like.base = x;
    y->like.factor = factor;
    y->like.axis = axis;
    return y;
}

/* The factor between node's cotangent and the one that it remembers; NULL if there is none. */
static xg_tensor *xg__past_factor(const xg_tensor *node, int *axis)
{
    xg_tensor *now = node->walk.first;
    *axis = 0;
    if (!node->past.cotangent || now == node->past.cotangent) return NULL;
    if (node->past.root && xg_size(now) == (size_t)now->shape.n) return now;
    *axis = now->like.axis;
    return now->like.base == node->past.cotangent ? now->like.factor : NULL;
}

/* Whether a factor for each sample passes node to its operand i, and along which axis it goes on.
 * A dense layer has its samples in the rows of a matrix. Weights belong to all samples, also where
 * there happen to be as many of them. */
static bool xg__samples_apart(const xg_tensor *node, int i, int samples, int *axis)
{
    xg_shape from = node->in[i]->shape, to = node->shape;
    xg_op op = node->op;
    if (op == XG_OP_permute || op == XG_OP_flip || op == XG_OP_concat) return false;
    if (op == XG_OP_conv2d && i == 1) return false;
    if (op == XG_OP_conv2d_dx && i == 0) return false;
    if (op == XG_OP_conv2d_dw) return false;
    if (op == XG_OP_matmul) return *axis == 2 && i == 0 && !node->attr.transpose.a;
    if (op == XG_OP_reshape && from.n != to.n) {
        bool rows = to.n == samples && from.h == samples && from.n * from.c == 1;
        *axis = rows ? 2 : 0;
        return rows || (from.n == samples && to.h == samples && to.n * to.c == 1);
    }
    return *axis == 0 && from.n == samples && to.n == samples;
}

/* x, shaped like operand i of node, times the factor between node's cotangent and the one that it
 * remembers; NULL if there is none. */
static xg_tensor *xg__past_times(const xg_tensor *node, int i, xg_tensor *x)
{
    int axis;
    xg_tensor *factor = xg__past_factor(node, &axis);
    if (node->walk.first == node->past.cotangent) return x;
    if (!factor) return NULL;
    int samples = factor->shape.n;
    if (samples > 1 && !xg__samples_apart(node, i, samples, &axis)) return NULL;
    return xg__scaled(x, factor, samples > 1 ? axis : 0);
}

/* Operand i's part, if an earlier sweep knows it but for a factor; else NULL. */
static xg_tensor *xg__past_part(const xg_tensor *node, int i)
{
    xg_tensor *part = node->past.part[i];
    if (part) part = xg__past_times(node, i, part);
    if (part) node->tape->counts.reused++;
    return part;
}

/* The sum of two parts of x's cotangent. If an earlier sweep added the same two, but for a factor,
 * it is that sum. */
static xg_tensor *xg__walk_sum(const xg_tensor *x, xg_tensor *old, xg_tensor *part)
{
    xg_tensor *past = x->past.cotangent;
    if (past && past->op == XG_OP_add && past->in[0] == old && past->in[1] == part) return past;
    if (past && past->op == XG_OP_add && old->like.base && old->like.base == past->in[0] &&
        part->like.base == past->in[1] && old->like.factor == part->like.factor) {
        return xg__scaled(past, old->like.factor, old->like.axis);
    }
    return xg_add(old, part);
}

/* Does a part of a cotangent come by a way of its own, or from the inside of batch norm, say? */
static bool xg__is_path(const xg_tensor *part)
{
    return part->data || part->hub || part->op == XG_OP_gate || xg__runs_late(part);
}

/* Adds a part, if there is one, to a tensor's cotangent, and returns it. What an operation
 * broadcast is summed back here, once for all rules. The gradient of a leaf in a last sweep, where
 * parts are not needed for anything else, is added up at once: so they need not be kept. */
static xg_tensor *xg__walk_add(xg_tensor *x, xg_tensor *part)
{
    if (!part) return NULL;
    part = xg_sum_to(part, x->shape);
    xg_tensor *old = x->walk.first, *sum = old && !part->adds ? xg__walk_sum(x, old, part) : part;
    if (old && xg_size(x) >= XG__WORTH && xg__is_path(old) && xg__is_path(part)) sum->hub = true;
    xg__hold(sum);
    x->walk.first = sum;
    if (old && x->op == XG_OP_leaf && x->tape->last_sweep) xg__force(sum);
    if (old) xg__let_go(old);
    return part;
}

/* The cotangent of x so far, if a last sweep may add a product to its numbers in their place. */
static xg_tensor *xg__walk_onto(const xg_tensor *x)
{
    xg_tensor *old = x->walk.first;
    bool last = old && old->passing && old->holds == 1 && xg__is_own(old);
    return last && x->tape->last_sweep ? old : NULL;
}

/* What node sends its operand i when g reaches it. */
static xg_tensor *xg__walk_part(xg_tensor *node, int i, xg_vjp rule, xg_tensor *g)
{
    xg_tape *tape = node->tape;
    tape->onto = xg__walk_onto(node->in[i]);
    xg_tensor *part = rule(node, i, g);
    tape->onto = NULL;
    return part;
}

/* 6.1.2 One product for two passes. Let T be the weight gradient of a convolution or dense layer.
 *     If an explanation's gradient sent d through the layer, and a loss on the explanation sends b
 *     to what came out below, the weight's part is T(b, d). If the answer's own pass brings a
 *     multiple f d to the layer, whose input is a, that is T(a, f d), and both are one product:
 *     T(f a + b, d). The sweep comes by b first, so T(b, d) is put off (the weight's walk.second)
 *     where f d is to be expected: the loss depends on the score that was explained, and samples
 *     did not meet on the way. */

/* Whether a sweep from y may put weight gradients off, and what later ones need to know of it. */
static void xg__join_begin(xg_tensor *y, bool ones, const xg_rules *rules)
{
    xg_tape *tape = y->tape;
    bool root = ones && !rules && xg_size(y) == (size_t)y->shape.n;
    if (tape->root) xg__walk_begin(tape, &tape->root, 1);
    tape->joins = !rules && tape->root && y->walk.number == tape->walks;
    if (root && y->shape.n > 1 && !tape->last_sweep) tape->root = y;
    y->walk.axis = root ? 0 : -1;
}

/* Along which axis of operand i's cotangent samples are still apart, as far as node's part goes. */
static void xg__join_axis(const xg_tensor *node, int i)
{
    xg_tensor *x = node->in[i];
    int axis = node->walk.axis, samples = node->tape->root ? node->tape->root->shape.n : 0;
    if (axis >= 0 && !xg__samples_apart(node, i, samples, &axis)) axis = -1;
    x->walk.axis = !x->walk.first || x->walk.axis == axis ? axis : -1;
}

/* Is operand i of node, which is what a layer sent on, the weight of that layer, whose own part is
 * to come? */
static bool xg__join_waits(const xg_tensor *node, int i)
{
    const xg_tensor *layer = node->part_of, *w = node->in[i];
    return node->tape->joins && layer && layer->past.apart && layer->past.part[0] == node &&
           layer->past.cotangent == node->in[1 - i] && layer->in[1] == w && !w->walk.second &&
           layer->walk.number == node->walk.number && layer->in[0] != w;
}

/* Whether node's part for operand i need not be made: it waits, or was made with what did. */
static bool xg__join(xg_tensor *node, int i, xg_vjp rule)
{
    xg_tensor *w = node->in[i], *other = w->walk.second;
    if (xg__join_waits(node, i)) {
        w->walk.second = node;
        xg__hold(node->walk.first);
        return true;
    }
    if (i != 1 || !node->tape->joins || !other || other->part_of != node) return false;
    xg_tensor both = *node, *a = xg__past_times(node, 0, node->in[0]), *b = other->walk.first;
    if (!a) return false;
    both.in[0] = xg_add(a, b);
    xg__walk_add(w, xg__walk_part(&both, 1, rule, node->past.cotangent));
    w->walk.second = NULL;
    xg__let_go(b);
    node->tape->counts.joined++;
    return true;
}

/* What has waited in vain is made after all, when the sweep comes by the weight. */
static void xg__join_end(xg_tensor *w)
{
    xg_tensor *node = w->walk.second, *g = node->walk.first;
    xg_tape *tape = w->tape;
    int first = tape->count;
    if (tape->last_sweep) tape->open = first;
    xg__walk_add(w, xg__walk_part(node, node->in[1] == w, xg__room_of(node->op)->vjp, g));
    xg__let_go(g);
    if (tape->last_sweep && !xg_failed(tape)) xg__end_unheld(tape, first);
}

/* Node remembers what it sent on (6.1.1, 6.1.2). */
static void xg__walk_remember(xg_tensor *node, xg_tensor *const part[2])
{
    node->past.cotangent = node->walk.first;
    node->past.root = false;
    node->past.apart = node->walk.axis >= 0;
    for (int i = 0; i < 2; i++) node->past.part[i] = part[i];
    if (part[0] && xg__is_product(part[0]->op) && part[0]->id > node->id) part[0]->part_of = node;
}

/* Sends node's cotangent on to its operands, unless it is constant. `rules` is NULL for the plain
 * ones, which remember. */
static void xg__walk_back(xg_tensor *node, const xg_rules *rules)
{
    xg_tape *tape = node->tape;
    int first = tape->count;
    bool shares = !rules && !tape->no_grad;    /* parts with other sweeps (6.1.1) */
    bool remember = shares && !tape->last_sweep && node->born == tape->arena.marks;
    xg_tensor *parts[2] = { NULL, NULL };
    xg_vjp rule = rules ? rules->vjp[node->op] : xg__room_of(node->op)->vjp;
    if (node->constant) rule = NULL;
    if (tape->last_sweep) tape->open = first;
    for (int i = 1; i >= 0; i--) {             /* weights first: see xg__is_pooled */
        xg_tensor *operand = node->in[i];
        if (!rule || !operand || operand->walk.number != node->walk.number) continue;
        if (xg__join(node, i, rule)) continue;
        if (shares) parts[i] = xg__past_part(node, i);
        if (!parts[i]) parts[i] = xg__walk_part(node, i, rule, node->walk.first);
        xg__join_axis(node, i);
        parts[i] = xg__walk_add(operand, parts[i]);
    }
    if (remember) xg__walk_remember(node, parts);
    if (tape->last_sweep && !xg_failed(tape)) xg__end_unheld(tape, first);
}

/* Reads the tape from y back to the earliest input. A last sweep lets go of each cotangent once its
 * node has been read; those of inputs are results and stay. */
static void xg__walk(xg_tensor *y, xg_tensor *seed, xg_tensor *const *x, int count,
                     const xg_rules *rules)
{
    xg_tape *tape = y->tape;
    bool ones = seed == NULL;
    xg__join_begin(y, ones, rules);
    xg_tensor *earliest = xg__walk_begin(tape, x, count);
    int number = tape->walks;
    if (ones) seed = xg_full(tape, y->shape, 1);
    for (int i = 0; i < count; i++) x[i]->walk.leads = true;
    if (y->walk.number == number && !xg_failed(tape)) xg__walk_add(y, seed);
    for (xg_tensor *node = y; node && node->id >= earliest->id; node = node->prev) {
        if (node->walk.number != number) continue;
        if (node->walk.second) xg__join_end(node);
        if (!node->walk.first) continue;
        xg__walk_back(node, rules);
        if (xg_failed(tape)) return;
        if (node == y) node->past.root = node->past.cotangent == seed && ones;
        if (!node->walk.leads) xg__let_go(node->walk.first);
        if (tape->last_sweep) xg__read_last(node);
    }
}

static void xg__grads(xg_tensor *y, xg_tensor *seed, xg_tensor *const *x, int count,
                      const xg_rules *rules, xg_tensor **out, bool last)
{
    xg_tape *tape = xg_tape_of(y);
    for (int i = 0; i < count; i++) out[i] = xg__poison(tape);
    if (!xg__walk_allowed("grads", y, x, count) || count < 1) return;
    if (seed && !xg__walk_allowed("grads", y, &seed, 1)) return;
    if (seed && !xg_shape_same(seed->shape, y->shape)) {
        xg_fail(tape, XG_ERR_SHAPE, "grads: the seed must be shaped like y");
    }
    if (y->constant) {
        xg_fail(tape, XG_ERR_ARGUMENT, "grads: the result of %s is a constant: it was made "
                "under xg_no_grad", xg__room_of(y->op)->name);
    }
    tape->last_sweep = last;
    if (!xg_failed(tape)) xg__walk(y, seed, x, count, rules);
    tape->last_sweep = false;
    tape->open = INT_MAX;
    for (int i = 0; i < count && !xg_failed(tape); i++) {
        out[i] = x[i]->walk.first ? x[i]->walk.first : xg_leaf(tape, x[i]->shape, NULL);
    }
}

XG_API_DEF void xg_grads(xg_tensor *y, xg_tensor *seed, xg_tensor *const *x, int count,
                         const xg_rules *rules, xg_tensor **out)
{
    xg__grads(y, seed, x, count, rules, out, false);
}

XG_API_DEF xg_tensor *xg_grad(xg_tensor *y, xg_tensor *x)
{
    xg_tensor *out;
    xg_grads(y, NULL, &x, 1, NULL, &out);
    return out;
}

/* 6.2 Rule tables. */

XG_API_DEF xg_rules xg_rules_plain(void)
{
    xg_rules rules;
    for (int op = 0; op < XG_OP_COUNT; op++) rules.vjp[op] = xg__room_of((xg_op)op)->vjp;
    return rules;
}

static xg_rules xg__rules_but(xg_op op, xg_vjp rule)
{
    xg_rules rules = xg_rules_plain();
    rules.vjp[op] = rule;
    return rules;
}

XG_API_DEF xg_rules xg_rules_explain(void) { return xg__rules_but(XG_OP_barrier, NULL); }

XG__RULE(guided_relu) { return xg_gate(xg_relu(g), y); }

XG_API_DEF xg_rules xg_rules_guided(void)
{
    return xg__rules_but(XG_OP_relu, xg__vjp_guided_relu);
}

XG__RULE(deconv_relu) { return xg_relu(g); }

XG_API_DEF xg_rules xg_rules_deconv(void)
{
    return xg__rules_but(XG_OP_relu, xg__vjp_deconv_relu);
}

/* 6.3 Forward readings: both carry a pair of tensors for each node between x and y. A node that
 *     does not depend on x is constant: its pair is (itself, itself) for bounds, and for a split
 *     (0, itself). */

/* Also marks what leads to y: the tape holds other readings of the same x, which are not wanted. An
 * index selects, and leads nowhere. A y that does not depend on x has no pair. */
static void xg__walk_between(xg_tensor *y, xg_tensor *x)
{
    xg__walk_begin(y->tape, &x, 1);
    int number = y->tape->walks;
    y->walk.leads = y->walk.number == number;
    if (!y->walk.leads) y->walk.first = y->walk.second = NULL;
    for (xg_tensor *node = y; node && node->id > x->id; node = node->prev) {
        if (node->walk.number != number || !node->walk.leads) continue;
        for (int i = 0; i < (node->op == XG_OP_gather ? 1 : 2); i++) {
            if (node->in[i] && node->in[i]->walk.number == number) node->in[i]->walk.leads = true;
        }
    }
}

static bool xg__moves(const xg_tensor *node, const xg_tensor *operand)
{
    return operand && operand->walk.number == node->walk.number;
}

/* Runs node's operation again on other operands: how linear and monotone operations are read. */
static xg_tensor *xg__again(const xg_tensor *node, xg_tensor *a, xg_tensor *b)
{
    return xg__emit(node->op, a, b, &node->attr);
}

static void xg__no_rule(const xg_tensor *node, const char *reading)
{
    xg_fail(node->tape, XG_ERR_RULE, "%s: %s has no rule here; use it on nets made of convolution, "
            "dense, addition, scaling, ReLU and pooling", reading, xg_op_name(node->op));
}

/* A product again, x in the place of the operand that varies. */
static xg_tensor *xg__product(const xg_tensor *node, int moving, xg_tensor *x, xg_tensor *constant)
{
    return moving ? xg__again(node, constant, x) : xg__again(node, x, constant);
}

/* Which operand of a bilinear operation varies: 0 or 1, or -1 for both. */
static int xg__only_moving(const xg_tensor *node)
{
    bool first = xg__moves(node, node->in[0]), second = xg__moves(node, node->in[1]);
    return first && second ? -1 : first ? 0 : 1;
}

typedef enum xg__kind { XG__STUCK, XG__LINEAR, XG__RISING, XG__SELECT, XG__BILINEAR } xg__kind;

/* What the forward readings need to know of an operation. RISING: monotone, not linear. */
static xg__kind xg__kind_of(xg_op op)
{
    switch (op) {
    case XG_OP_sum_to: case XG_OP_expand: case XG_OP_reshape: case XG_OP_permute: case XG_OP_flip:
    case XG_OP_slice: case XG_OP_pad: case XG_OP_avgpool: case XG_OP_upsample: case XG_OP_concat:
    case XG_OP_barrier: case XG_OP_detach:
        return XG__LINEAR;
    case XG_OP_exp: case XG_OP_log: case XG_OP_sqrt: case XG_OP_sigmoid: case XG_OP_tanh:
    case XG_OP_softplus: case XG_OP_relu: case XG_OP_clamp: case XG_OP_max: case XG_OP_min:
    case XG_OP_max_to:
        return XG__RISING;
    case XG_OP_gather:
        return XG__SELECT;
    case XG_OP_mul: case XG_OP_matmul: case XG_OP_conv2d:
        return XG__BILINEAR;
    default:
        return XG__STUCK;
    }
}

static xg_tensor *xg__side_of(const xg_tensor *node, xg_tensor *operand, bool second)
{
    if (!operand || !xg__moves(node, operand)) return operand;
    return second ? operand->walk.second : operand->walk.first;
}

/* x's pair, if it was made as a centre less and plus a radius; otherwise there is no centre. Linear
 * operations take these two, not the sides: the radius of a sum with a constant stays what it is,
 * and where the centre is x itself, that of what they make is the operation's own result, which the
 * pass that gave y has computed. The gradients of both meet there. */
typedef struct xg__box { xg_tensor *centre, *radius; } xg__box;

static xg__box xg__box_of(const xg_tensor *x)
{
    const xg_tensor *lo = x->walk.first, *hi = x->walk.second;
    xg__box box = { NULL, NULL };
    if (lo->op != XG_OP_sub || hi->op != XG_OP_add) return box;
    if (lo->in[0] != hi->in[0] || lo->in[1] != hi->in[1]) return box;
    box.centre = xg_expand(lo->in[0], x->shape);
    box.radius = xg_expand(lo->in[1], x->shape);
    return box;
}

/* Gives node the box about what it makes of the centre of operand i's. */
static void xg__bounds_about(xg_tensor *node, int i, xg_tensor *centre, xg_tensor *radius)
{
    if (centre == node->in[i]) centre = node;
    else centre = xg__again(node, i ? node->in[0] : centre, i ? centre : node->in[1]);
    node->walk.first = xg_sub(centre, radius);
    node->walk.second = xg_add(centre, radius);
}

/* Half of a sum or difference, before both are reshaped: they would be stored only to be shown. */
static xg_tensor *xg__half(xg_tensor *a, xg_tensor *b, bool sum)
{
    bool shown = a->op == XG_OP_reshape && b->op == XG_OP_reshape;
    if (shown && xg_shape_same(a->in[0]->shape, b->in[0]->shape)) {
        return xg_reshape(xg__half(a->in[0], b->in[0], sum), a->shape);
    }
    return xg_affine(sum ? xg_add(a, b) : xg_sub(a, b), 0.5, 0);
}

/* Bounds of a product with a constant: centre and radius, the radius through |constant|. */
static void xg__bounds_bilinear(xg_tensor *node)
{
    int moving = xg__only_moving(node);
    if (moving < 0) { xg__no_rule(node, "bounds of a product of two varying tensors"); return; }
    xg_tensor *x = node->in[moving], *size = xg_abs(node->in[1 - moving]);
    xg__box box = xg__box_of(x);
    if (!box.centre) {
        box.centre = xg__half(x->walk.second, x->walk.first, true);
        box.radius = xg__half(x->walk.second, x->walk.first, false);
    }
    xg__bounds_about(node, moving, box.centre, xg__product(node, moving, box.radius, size));
}

/* Bounds of what a linear operation makes of a box, or a sum with a constant; false without one. */
static bool xg__bounds_box(xg_tensor *node)
{
    int moving = xg__only_moving(node);
    bool shifts = node->op == XG_OP_add || node->op == XG_OP_sub;
    bool alone = xg__kind_of(node->op) == XG__LINEAR && !node->in[1];
    if (moving < 0 || !(shifts || alone)) return false;
    xg__box box = xg__box_of(node->in[moving]);
    if (!box.centre) return false;
    if (alone) box.radius = xg__again(node, box.radius, NULL);
    xg__bounds_about(node, moving, box.centre, box.radius);
    return true;
}

static void xg__bounds_node(xg_tensor *node)
{
    xg_tensor *low[2], *high[2];
    for (int i = 0; i < 2; i++) {
        low[i] = xg__side_of(node, node->in[i], false);
        high[i] = xg__side_of(node, node->in[i], true);
    }
    xg__kind kind = xg__kind_of(node->op);
    bool falls = node->op == XG_OP_affine && node->attr.number.p < 0;
    if (xg__bounds_box(node)) return;
    if (xg__is_maxpool(node)) {
        node->walk.first = xg_maxpool(low[0], node->in[1]->attr.conv.window);
        node->walk.second = xg_maxpool(high[0], node->in[1]->attr.conv.window);
    } else if (kind == XG__LINEAR || kind == XG__RISING || node->op == XG_OP_affine ||
               node->op == XG_OP_add || (kind == XG__SELECT && !xg__moves(node, node->in[1]))) {
        node->walk.first = xg__again(node, falls ? high[0] : low[0], low[1]);
        node->walk.second = xg__again(node, falls ? low[0] : high[0], high[1]);
    } else if (node->op == XG_OP_sub) {
        node->walk.first = xg_sub(low[0], high[1]);
        node->walk.second = xg_sub(high[0], low[1]);
    } else if (kind == XG__BILINEAR) {
        xg__bounds_bilinear(node);
    } else {
        xg__no_rule(node, "bounds");
    }
}

/* Walks from x to y, giving every node between them its pair. */
static void xg__walk_forward(xg_tensor *y, xg_tensor *x, xg_tensor *first, xg_tensor *second,
                             void (*read)(xg_tensor *node))
{
    xg_tensor *last = y->tape->last;           /* what the reading itself makes comes after */
    xg__walk_between(y, x);
    int number = y->tape->walks;
    x->walk.first = first;
    x->walk.second = second;
    for (xg_tensor *node = x; node != last && !xg_failed(y->tape);) {
        node = node->next;
        if (node->walk.number == number && node->walk.leads) read(node);
        if (node == y) break;
    }
}

XG_API_DEF void xg_bounds(xg_tensor *y, xg_tensor *x, xg_tensor *lo, xg_tensor *hi,
                          xg_tensor **out_lo, xg_tensor **out_hi)
{
    xg_tensor *const all[3] = { x, lo, hi };
    *out_lo = *out_hi = xg__poison(xg_tape_of(y));
    if (!xg__walk_allowed("bounds", y, all, 3)) return;
    if (!xg_shape_same(lo->shape, x->shape) || !xg_shape_same(hi->shape, x->shape)) {
        xg_fail(y->tape, XG_ERR_SHAPE, "bounds: lo and hi must be shaped like x");
        return;
    }
    xg__walk_forward(y, x, lo, hi, xg__bounds_node);
    if (xg_failed(y->tape)) return;
    *out_lo = y->walk.first ? y->walk.first : y;           /* y does not depend on x: a point */
    *out_hi = y->walk.second ? y->walk.second : y;
}

/* A constant c added to a split goes to both parts in proportion to their size (CDEP). */
static void xg__split_constant(xg_tensor *node, xg_tensor *beta, xg_tensor *gamma, xg_tensor *c)
{
    xg_tensor *a = xg_abs(beta);
    xg_tensor *all = xg_affine(xg_add(a, xg_abs(gamma)), 1, 1e-19);
    xg_tensor *share = xg_mul(c, xg_div(a, all));
    node->walk.first = xg_add(beta, share);
    node->walk.second = xg_sub(xg_add(gamma, c), share);
}

static void xg__split_node(xg_tensor *node)
{
    int moving = xg__only_moving(node);
    xg_tensor *x = node->in[moving < 0 ? 0 : moving];
    xg_tensor *beta = x->walk.first, *gamma = x->walk.second;
    xg__kind kind = xg__kind_of(node->op);
    bool pairwise = kind == XG__LINEAR || node->op == XG_OP_add || node->op == XG_OP_sub;
    if (node->op == XG_OP_relu) {
        node->walk.first = xg_relu(beta);
        node->walk.second = xg_sub(xg_relu(xg_add(beta, gamma)), node->walk.first);
    } else if (node->op == XG_OP_affine) {
        xg_tensor *c = xg_scalar(node->tape, node->attr.number.q);
        xg__split_constant(node, xg_affine(beta, node->attr.number.p, 0),
                           xg_affine(gamma, node->attr.number.p, 0), c);
    } else if (kind == XG__SELECT && moving < 1) {
        node->walk.first = xg_gather(beta, node->in[1]);
        node->walk.second = xg_gather(gamma, node->in[1]);
    } else if (pairwise && (moving < 0 || !node->in[1])) {
        xg_tensor *other = node->in[1];
        node->walk.first = xg__again(node, beta, other ? other->walk.first : NULL);
        node->walk.second = xg__again(node, gamma, other ? other->walk.second : NULL);
    } else if (pairwise && node->op != XG_OP_concat) {
        bool minus = node->op == XG_OP_sub;
        xg_tensor *c = node->in[1 - moving];
        if (minus && moving == 1) { beta = xg_neg(beta); gamma = xg_neg(gamma); }
        if (minus && moving == 0) c = xg_neg(c);
        xg__split_constant(node, beta, gamma, c);
    } else if (kind == XG__BILINEAR && moving >= 0) {
        xg_tensor *c = node->in[1 - moving];
        node->walk.first = xg__product(node, moving, beta, c);
        node->walk.second = xg__product(node, moving, gamma, c);
    } else {
        xg__no_rule(node, "split");
    }
}

XG_API_DEF void xg_split(xg_tensor *y, xg_tensor *x, xg_tensor *part,
                         xg_tensor **beta, xg_tensor **gamma)
{
    xg_tensor *const both[2] = { x, part };
    *beta = *gamma = xg__poison(xg_tape_of(y));
    if (!xg__walk_allowed("split", y, both, 2)) return;
    if (!xg_shape_same(part->shape, x->shape)) {
        xg_fail(y->tape, XG_ERR_SHAPE, "split: the part must be shaped like x");
        return;
    }
    xg__walk_forward(y, x, part, xg_sub(x, part), xg__split_node);
    if (xg_failed(y->tape)) return;
    *beta = y->walk.first ? y->walk.first : xg_leaf(y->tape, y->shape, NULL);
    *gamma = y->walk.second ? y->walk.second : y;
}

/* 6.4 Gradient check. s_0 = <f(x), r>; s_k = sum_i <d s_(k-1) / d x_i, v_i> is the k-th derivative
 *     along random directions, which central differences of s_(k-1) along the same v must match. */

enum { XG__CHECK_ORDERS = 4, XG__CHECK_INPUTS = 16 };

typedef struct xg__check {
    xg_function f;
    void       *user;
    int         count;
    xg_rng      directions;                    /* restarted for every evaluation */
    xg_tensor  *moved[XG__CHECK_INPUTS];       /* leaves that hold x + h v */
} xg__check;

/* s_order at the values that the leaves hold now. */
static double xg__check_value(xg__check *check, int order)
{
    xg_tape *tape = xg_tape_of(check->moved[0]);
    xg_mark mark = xg_tape_mark(tape);
    xg_rng rng = check->directions;
    xg_tensor *y = check->f(check->moved, check->count, check->user);
    xg_tensor *s = xg_dot(y, xg_randn(tape, xg_shape_of(y), &rng));
    for (int k = 0; k < order; k++) {
        xg_tensor *g[XG__CHECK_INPUTS], *sum = NULL;
        xg_grads(s, NULL, check->moved, check->count, NULL, g);
        for (int i = 0; i < check->count; i++) {
            xg_tensor *along = xg_dot(g[i], xg_randn(tape, xg_shape_of(check->moved[i]), &rng));
            sum = sum ? xg_add(sum, along) : along;
        }
        s = sum;
    }
    double value = xg_item(s);
    xg_tape_release(tape, mark);
    return value;
}

/* Moves every leaf by h along the direction that s_order uses. */
static void xg__check_move(xg__check *check, xg_tensor *const *x, int order, double h)
{
    xg_tape *tape = xg_tape_of(check->moved[0]);
    xg_mark mark = xg_tape_mark(tape);
    xg_rng rng = check->directions;
    xg_shape shape = xg_shape_of(check->f(check->moved, check->count, check->user));
    xg_randn(tape, shape, &rng);
    for (int k = 0; k < order; k++) {
        for (int i = 0; i < check->count; i++) {
            xg_tensor *v = xg_randn(tape, xg_shape_of(x[i]), &rng);
            if (k < order - 1 || xg_failed(tape)) continue;
            for (size_t j = 0; j < xg_size(v); j++) {
                check->moved[i]->data[j] = (xg_real)((double)xg_data(x[i])[j] +
                                                     h * (double)xg_data(v)[j]);
            }
        }
    }
    xg_tape_release(tape, mark);
}

XG_API_DEF double xg_gradcheck(xg_function f, void *user, xg_tensor *const *x, int count,
                               int orders, double step, xg_rng *rng)
{
    xg_tape *tape = count > 0 ? xg_tape_of(x[0]) : NULL;
    if (!xg_failed(tape) && (count > XG__CHECK_INPUTS || orders < 1 || orders > XG__CHECK_ORDERS)) {
        xg_fail(tape, XG_ERR_ARGUMENT, "gradcheck: at most %d inputs and orders 1 to %d",
                XG__CHECK_INPUTS, XG__CHECK_ORDERS);
    }
    if (xg_failed(tape)) return (double)NAN;
    xg__check check = { f, user, count, xg_rng_seed(xg_rng_next(rng)), { NULL } };
    double h = step > 0 ? step : 1e-5, worst = 0;

    xg_mark mark = xg_tape_mark(tape);
    for (int i = 0; i < count; i++) {
        check.moved[i] = xg_leaf(tape, xg_shape_of(x[i]), xg_data(x[i]));
    }
    for (int order = 1; order <= orders && !xg_failed(tape); order++) {
        xg__check_move(&check, x, order, 0);
        double exact = xg__check_value(&check, order);
        xg__check_move(&check, x, order, h);
        double above = xg__check_value(&check, order - 1);
        xg__check_move(&check, x, order, -h);
        double below = xg__check_value(&check, order - 1);
        double estimate = (above - below) / (2 * h);
        double scale = fabs(exact) > fabs(estimate) ? fabs(exact) : fabs(estimate);
        double error = fabs(exact - estimate) / (scale > 1 ? scale : 1);
        if (!(error <= worst)) worst = error;  /* a NaN is the worst */
    }
    xg_tape_release(tape, mark);
    return xg_failed(tape) ? (double)NAN : worst;
}

/* ============================================================================================== *
 *  [7] models                                                                                    *
 * ============================================================================================== */

/* 7.1 The parameter store: entries in order of creation, found by name through a hash table, all in
 *     one arena that only grows. Leaves on a tape alias the entries' numbers without copying:
 *
 *         entry[0] "conv1.weight"  -> numbers <--- leaf on a tape
 *                                  -> slots of optimisers: ("optim", 0), ("optim", 1), ...
 *         entry[1] "bn1.weight"    -> ...
 *
 *     Whatever an optimiser remembers lies in the slots and in the step counts, and nowhere else:
 *     a checkpoint of the store is all that training needs to go on bit by bit. */

/* A vector of optimiser state beside an entry, as long as the entry. */
typedef struct xg__slot {
    struct xg__slot *next;
    const char *optim;             /* whose state it is */
    int         which;             /* 0: momentum or first moment, 1: second moment */
    xg_real    *data;
} xg__slot;

/* A named array of numbers: a weight, or a buffer such as a running mean. */
typedef struct xg__entry {
    const char *name;
    xg_shape    shape;
    bool        trainable;         /* false: a buffer */
    bool        frozen;            /* left alone for now, by xg_params_freeze */
    xg_real    *data;              /* tape leaves read it in place */
    xg__slot   *slots;
    int         axes;              /* that files list at least: 4 of a convolution, also 1x1 */
    int         chosen;            /* of a training step: the index of its gradient, or -1 */
} xg__entry;

/* How many steps an optimiser has taken. */
typedef struct xg__steps {
    struct xg__steps *next;
    const char *optim;
    int64_t     steps;
} xg__steps;

struct xg_params {
    xg__arena   arena;
    xg_config   config;            /* for clones */
    xg_error    error;
    xg__entry  *entry;
    int         count, capacity;
    int        *bucket;            /* 2 x capacity, a power of two: an entry's index + 1, or 0 */
    xg__steps  *steps;             /* in order of creation */
    xg_tensor **leaf, **grad;      /* for a training step, as long as `entry`: so it never needs
                                      memory for them */
};

enum { XG__FIRST_CAPACITY = 64, XG__NAME_SIZE = 256 };

/* Zeroed memory that lives as long as the store, zeroed up to the padding. */
static void *xg__params_take(xg_params *params, size_t bytes)
{
    size_t padded = xg__round_up(bytes);
    void *memory = xg__arena_take(&params->arena, padded);
    if (memory) {
        memset(memory, 0, padded);
    } else {
        xg__complain(&params->error, XG_ERR_MEMORY, "out of memory: %.1f MB more for parameters or "
                     "optimiser state", (double)padded / 1e6);
    }
    return memory;
}

XG_API_DEF xg_params *xg_params_new(const xg_config *config)
{
    xg_config chosen = XG__ZEROS;
    if (config) chosen = *config;
    xg__arena arena = xg__arena_open(&chosen);     /* the store lives in its own arena */
    xg_params *params = (xg_params *)xg__arena_take(&arena, sizeof *params);
    if (!params) { xg__arena_close(arena); return NULL; }
    memset(params, 0, sizeof *params);
    params->arena = arena;
    params->config = chosen;
    return params;
}

XG_API_DEF void xg_params_free(xg_params *params)
{
    if (params) xg__arena_close(params->arena);
}

XG_API_DEF const xg_error *xg_params_error(const xg_params *params)
{
    static const xg_error none = { XG_ERR_MEMORY, "no store: xg_params_new returned NULL" };
    return params ? &params->error : &none;
}

XG_API_DEF void xg_params_clear_error(xg_params *params)
{
    if (params) memset(&params->error, 0, sizeof params->error);
}

static bool xg__params_has(const xg_params *params, int i)
{
    return params && i >= 0 && i < params->count;
}

XG_API_DEF int xg_params_count(const xg_params *params) { return params ? params->count : 0; }

XG_API_DEF const char *xg_params_name(const xg_params *params, int i)
{
    return xg__params_has(params, i) ? params->entry[i].name : "";
}

XG_API_DEF xg_shape xg_params_shape(const xg_params *params, int i)
{
    return xg__params_has(params, i) ? params->entry[i].shape : xg_shape4(0, 0, 0, 0);
}

XG_API_DEF xg_real *xg_params_data(xg_params *params, int i)
{
    return xg__params_has(params, i) ? params->entry[i].data : NULL;
}

XG_API_DEF bool xg_params_trainable(const xg_params *params, int i)
{
    return xg__params_has(params, i) && params->entry[i].trainable && !params->entry[i].frozen;
}

/* The place in the hash table where a name stands, or where it would go: from the name's hash on,
 * the first that holds the name or nothing. */
static int *xg__params_bucket(const xg_params *params, const char *name)
{
    uint32_t mask = (uint32_t)params->capacity * 2 - 1;
    uint32_t at = xg__hash(name) & mask;
    while (params->bucket[at] && strcmp(params->entry[params->bucket[at] - 1].name, name)) {
        at = (at + 1) & mask;              /* half of the table is free, so this ends */
    }
    return &params->bucket[at];
}

XG_API_DEF int xg_params_find(const xg_params *params, const char *name)
{
    if (!params || !params->count || !name) return -1;
    return *xg__params_bucket(params, name) - 1;
}

/* Keeps the first `count` entries and writes the hash table anew: after growth, and to take back
 * the entries of a load that ran out of memory. */
static void xg__params_cut(xg_params *params, int count)
{
    params->count = count;
    if (!params->bucket) return;
    memset(params->bucket, 0, 2 * (size_t)params->capacity * sizeof *params->bucket);
    for (int i = 0; i < count; i++) {
        *xg__params_bucket(params, params->entry[i].name) = i + 1;
    }
}

/* Doubles the room for entries. On failure nothing changes. The old lists stay in the arena unused:
 * together they are never larger than the new ones. */
static bool xg__params_grow(xg_params *params)
{
    int capacity = params->capacity ? 2 * params->capacity : XG__FIRST_CAPACITY;
    size_t n = (size_t)capacity;
    xg__place before = xg__arena_mark(&params->arena);
    xg_params next = *params;
    next.capacity = capacity;
    next.entry = (xg__entry *)xg__params_take(params, n * sizeof *next.entry);
    next.bucket = (int *)xg__params_take(params, 2 * n * sizeof *next.bucket);
    next.leaf = (xg_tensor **)xg__params_take(params, n * sizeof *next.leaf);
    next.grad = (xg_tensor **)xg__params_take(params, n * sizeof *next.grad);
    if (!next.entry || !next.bucket || !next.leaf || !next.grad) {
        xg__arena_release(&params->arena, before);
        return false;
    }
    for (int i = 0; i < params->count; i++) next.entry[i] = params->entry[i];
    next.arena = params->arena;            /* taking memory moved it on */
    *params = next;
    xg__params_cut(params, params->count);
    return true;
}

/* A new entry of zeros, its index; -1 without memory. The caller knows that the name is new. */
static int xg__params_insert(xg_params *params, const char *name, xg_shape s, bool trainable)
{
    if (params->count == params->capacity && !xg__params_grow(params)) return -1;
    xg__place before = xg__arena_mark(&params->arena);
    xg__entry entry = XG__ZEROS;
    size_t length = strlen(name) + 1;
    char *text = (char *)xg__params_take(params, length);
    if (text) entry.data = (xg_real *)xg__params_take(params, xg_shape_size(s) * sizeof(xg_real));
    if (!entry.data) {
        xg__arena_release(&params->arena, before);
        return -1;
    }
    entry.name = (const char *)memcpy(text, name, length);
    entry.shape = s;
    entry.trainable = trainable;
    *xg__params_bucket(params, name) = params->count + 1;
    params->entry[params->count] = entry;
    return params->count++;
}

XG_API_DEF int xg_params_add(xg_params *params, const char *name, xg_shape s, bool trainable)
{
    if (!params) return -1;
    if (!name || !name[0] || !xg__shape_valid(s)) {
        xg__complain(&params->error, XG_ERR_ARGUMENT, "params_add: '%.80s' [%d %d %d %d] needs a "
                     "name and extents of at least 1", name ? name : "", s.n, s.c, s.h, s.w);
        return -1;
    }
    int found = xg_params_find(params, name);
    if (found < 0) return xg__params_insert(params, name, s, trainable);
    xg_shape old = params->entry[found].shape;
    if (xg_shape_same(old, s)) return found;
    xg__complain(&params->error, XG_ERR_SHAPE, "params_add: '%.80s' is [%d %d %d %d] already, not "
                 "[%d %d %d %d]", name, old.n, old.c, old.h, old.w, s.n, s.c, s.h, s.w);
    return -1;
}

/* What follows a prefix; NULL when the text does not begin with it. */
static const char *xg__after(const char *text, const char *prefix)
{
    const size_t length = strlen(prefix);
    return strncmp(text, prefix, length) ? NULL : text + length;
}

/* No prefix fits every text. */
static bool xg__starts_with(const char *text, const char *prefix)
{
    return !prefix || xg__after(text, prefix);
}

XG_API_DEF void xg_params_freeze(xg_params *params, const char *prefix, bool frozen)
{
    for (int i = 0; i < xg_params_count(params); i++) {
        if (xg__starts_with(params->entry[i].name, prefix)) params->entry[i].frozen = frozen;
    }
}

XG_API_DEF size_t xg_params_size(const xg_params *params)
{
    size_t size = 0;
    for (int i = 0; i < xg_params_count(params); i++) {
        if (xg_params_trainable(params, i)) size += xg_shape_size(params->entry[i].shape);
    }
    return size;
}

XG_API_DEF xg_params *xg_params_clone(const xg_params *params)
{
    if (!params || params->config.fixed) return NULL;      /* a fixed buffer holds one store only */
    xg_params *copy = xg_params_new(&params->config);
    for (int i = 0; copy && i < params->count; i++) {
        const xg__entry *from = &params->entry[i];
        int at = xg__params_insert(copy, from->name, from->shape, from->trainable);
        if (at < 0) { xg_params_free(copy); return NULL; }
        copy->entry[at].frozen = from->frozen;
        copy->entry[at].axes = from->axes;
        memcpy(copy->entry[at].data, from->data, xg_shape_size(from->shape) * sizeof(xg_real));
    }
    return copy;
}

/* Optimiser state: step counts by optimiser, vectors by entry, optimiser and number. */

/* The count of that optimiser, a new one at 0 if there is none; NULL without memory. */
static xg__steps *xg__steps_of(xg_params *params, const char *optim)
{
    xg__steps **link = &params->steps;
    while (*link && strcmp((*link)->optim, optim)) link = &(*link)->next;
    if (*link) return *link;
    size_t length = strlen(optim) + 1;
    xg__steps *steps = (xg__steps *)xg__params_take(params, sizeof *steps + length);
    if (!steps) return NULL;
    steps->optim = (const char *)memcpy(steps + 1, optim, length);
    *link = steps;
    return steps;
}

/* An entry's state of that optimiser and number; NULL when there is none. */
static xg__slot *xg__slot_find(const xg__entry *entry, const char *optim, int which)
{
    xg__slot *slot = entry->slots;
    while (slot && (slot->which != which || strcmp(slot->optim, optim))) slot = slot->next;
    return slot;
}

/* The same, of zeros when it is new; NULL without memory. */
static xg__slot *xg__slot_of(xg_params *params, xg__entry *owner, const char *optim, int which)
{
    xg__slot *slot = xg__slot_find(owner, optim, which);
    if (slot) return slot;
    xg__steps *steps = xg__steps_of(params, optim);
    if (!steps) return NULL;
    xg__place before = xg__arena_mark(&params->arena);
    size_t bytes = xg_shape_size(owner->shape) * sizeof(xg_real);
    slot = (xg__slot *)xg__params_take(params, sizeof *slot);
    if (slot) slot->data = (xg_real *)xg__params_take(params, bytes);
    if (!slot || !slot->data) {
        xg__arena_release(&params->arena, before);
        return NULL;
    }
    slot->optim = steps->optim;
    slot->which = which;
    slot->next = owner->slots;
    owner->slots = slot;
    return slot;
}

/* Scopes: where in the tree of names a model is being built. A scope is a value; going deeper makes
 * another one with a longer prefix. All of them draw from the same generator. */

XG_API_DEF xg_scope xg_scope_new(xg_tape *tape, xg_params *params, xg_rng *rng, bool train)
{
    const xg_scope s = { tape, params, rng, train, NULL, "" };
    return s;
}

/* Writes prefix + name + tail, or fails the tape when that is too long. */
static bool xg__full_name(const xg_scope *s, const char *name, const char *tail, char *out,
                          size_t size)
{
    int length = snprintf(out, size, "%s%s%s", s->prefix, name, tail);
    if (length >= 0 && (size_t)length < size) return true;
    xg_fail(s->tape, XG_ERR_ARGUMENT, "the name '%.60s...' has more than %d characters", out,
            (int)size - 1);
    return false;
}

static xg_scope xg__scope_in(const xg_scope *s, const char *name, const char *tail)
{
    xg_scope inner = *s;
    return xg__full_name(s, name, tail, inner.prefix, sizeof inner.prefix) ? inner : *s;
}

XG_API_DEF xg_scope xg_in(const xg_scope *s, const char *name)
{
    return xg__scope_in(s, name, ".");
}

XG_API_DEF xg_scope xg_in_at(const xg_scope *s, const char *name, int i)
{
    char tail[24];
    snprintf(tail, sizeof tail, ".%d.", i);
    return xg__scope_in(s, name, tail);
}

/* How weights start. With a variance of gain^2 2/fan_in a ReLU layer hands on the variance that it
 * gets (He et al. 2015); with fan_out the same holds for gradients on their way back. */

static void xg__fill_normal(xg_real *w, size_t size, double deviation, xg_rng *rng)
{
    for (size_t i = 0; i < size; i++) w[i] = (xg_real)(deviation * xg_rng_normal(rng));
}

static void xg__fill_uniform(xg_real *w, size_t size, double range, xg_rng *rng)
{
    for (size_t i = 0; i < size; i++) w[i] = (xg_real)(range * (2 * xg_rng_uniform(rng) - 1));
}

/* A kernel that copies channel i to channel i: ones at the centre taps of the diagonal. */
static void xg__fill_identity(xg_real *w, xg_shape s, double gain)
{
    size_t plane = (size_t)s.h * (size_t)s.w;
    size_t centre = (size_t)(s.h / 2) * (size_t)s.w + (size_t)(s.w / 2);
    for (size_t i = 0; i < (size_t)s.n && i < (size_t)s.c; i++) {
        w[(i * (size_t)s.c + i) * plane + centre] = (xg_real)gain;
    }
}

static void xg__fill(xg_real *w, xg_shape s, xg_init init, double gain, xg_rng *rng)
{
    size_t size = xg_shape_size(s);
    double plane = (double)s.h * s.w;
    double fan_in = s.c * plane, fan_out = s.n * plane;
    switch (init) {
    case XG_INIT_ZERO: break;              /* entries are born so */
    case XG_INIT_ONE: for (size_t i = 0; i < size; i++) w[i] = (xg_real)gain; break;
    case XG_INIT_IDENTITY: xg__fill_identity(w, s, gain); break;
    case XG_INIT_KAIMING: xg__fill_normal(w, size, gain * sqrt(2 / fan_in), rng); break;
    case XG_INIT_KAIMING_FAN_OUT: xg__fill_normal(w, size, gain * sqrt(2 / fan_out), rng); break;
    case XG_INIT_XAVIER: xg__fill_uniform(w, size, gain * sqrt(6 / (fan_in + fan_out)), rng); break;
    case XG_INIT_LECUN_UNIFORM: xg__fill_uniform(w, size, gain / sqrt(fan_in), rng); break;
    }
}

/* The entry of that name, new and filled if need be; -1 after failing the tape. */
static int xg__param_entry(xg_scope *s, const char *full, xg_shape shape, xg_init init, double gain,
                           bool trainable)
{
    int at = xg_params_find(s->params, full);
    if (at >= 0) {
        xg_shape old = s->params->entry[at].shape;
        if (xg_shape_same(old, shape)) return at;
        xg_fail(s->tape, XG_ERR_SHAPE, "parameter '%.80s' is [%d %d %d %d] in the store, and "
                "[%d %d %d %d] is wanted here", full, old.n, old.c, old.h, old.w, shape.n, shape.c,
                shape.h, shape.w);
        return -1;
    }
    bool random = init != XG_INIT_ZERO && init != XG_INIT_ONE && init != XG_INIT_IDENTITY;
    if ((random && !s->rng) || !xg__shape_valid(shape)) {
        xg_fail(s->tape, XG_ERR_ARGUMENT, "parameter '%.80s' [%d %d %d %d] is new: it needs "
                "extents of at least 1%s", full, shape.n, shape.c, shape.h, shape.w,
                s->rng ? "" : ", and the scope a random generator");
        return -1;
    }
    at = xg__params_insert(s->params, full, shape, trainable);
    if (at >= 0) xg__fill(s->params->entry[at].data, shape, init, gain, s->rng);
    else xg_fail(s->tape, XG_ERR_MEMORY, "out of memory for parameter '%.80s'", full);
    return at;
}

/* The entry's leaf on a tape, or NULL. A leaf over other numbers is that of a store which was freed
 * and stood at the same address. */
static xg_tensor *xg__entry_leaf(const xg_params *params, const xg__entry *entry, xg_tape *tape)
{
    xg_tensor *leaf = xg__find_owned(tape, params, entry->name);
    return leaf && leaf->data == entry->data ? leaf : NULL;
}

/* Everything behind xg_param and xg_buffer. A gain of 0 is the default, 1. */
static xg_tensor *xg__param_leaf(xg_scope *s, const char *name, xg_shape shape, xg_init init,
                                 double gain, bool trainable)
{
    char full[XG__NAME_SIZE];
    if (xg_failed(s->tape)) return xg__poison(s->tape);
    if (!s->params) {
        xg_fail(s->tape, XG_ERR_ARGUMENT, "parameter '%.80s': the scope has no store", name);
        return xg__poison(s->tape);
    }
    if (!xg__full_name(s, name, "", full, sizeof full)) return xg__poison(s->tape);
    int at = xg__param_entry(s, full, shape, init, gain == 0 ? 1 : gain, trainable);
    if (at < 0) return xg__poison(s->tape);
    xg__entry *entry = &s->params->entry[at];
    /* A file's tensors enter as weights; a layer knows which of them are buffers. */
    if (!trainable && entry->trainable) entry->trainable = false;

    xg_tensor *leaf = xg__entry_leaf(s->params, entry, s->tape);
    if (leaf) return leaf;
    leaf = xg__alias_leaf(s->tape, shape, entry->data);
    xg__name_owned(leaf, s->params, full);
    return leaf;
}

XG_API_DEF xg_tensor *xg_param(xg_scope *s, const char *name, xg_shape shape, xg_init init,
                               double gain)
{
    return xg__param_leaf(s, name, shape, init, gain, true);
}

XG_API_DEF xg_tensor *xg_buffer(xg_scope *s, const char *name, xg_shape shape, xg_init init)
{
    return xg__param_leaf(s, name, shape, init, 1, false);
}

/* Those leaves that an optimiser restricted to names starting with `only` may change. */
static int xg__params_leaves(xg_params *params, xg_tape *tape, const char *only, xg_tensor **out,
                             int max)
{
    int found = 0;
    for (int i = 0; i < xg_params_count(params); i++) {
        const xg__entry *entry = &params->entry[i];
        if (!xg_params_trainable(params, i) || !xg__starts_with(entry->name, only)) continue;
        xg_tensor *leaf = xg__entry_leaf(params, entry, tape);
        if (!leaf) continue;
        if (found < max) out[found] = leaf;
        found++;
    }
    return found;
}

XG_API_DEF int xg_params_leaves(xg_params *params, xg_tape *tape, xg_tensor **out, int max)
{
    return xg__params_leaves(params, tape, NULL, out, max);
}

/* 7.2 Layers: functions of public operations, so that every reading and every order of derivative
 *     works on them. Each names what it makes: "layer1.0.conv2" can be found on the tape. Vectors
 *     of one number a channel are [c,1,1,1] in the store, as files have them. */

static xg_tensor *xg__named(const xg_scope *s, const char *name, xg_tensor *x)
{
    char full[XG__NAME_SIZE];
    if (xg_failed(s->tape) || !xg__full_name(s, name, "", full, sizeof full)) {
        return xg__poison(s->tape);
    }
    return xg_name(x, full);
}

/* Is there an input to take a shape from? If not, wrong weights would enter the store. */
static bool xg__layer_ready(const xg_scope *s, const char *name, const xg_tensor *x)
{
    if (xg_failed(s->tape)) return false;
    if (xg__is_poison(x)) {
        xg_fail(s->tape, XG_ERR_ARGUMENT, "layer '%.80s': there is no input", name);
    } else if (x->tape != s->tape) {
        xg_fail(s->tape, XG_ERR_TAPE, "layer '%.80s': the input is not on the scope's tape", name);
    }
    return !xg_failed(s->tape);
}

/* A vector of the store, laid out to broadcast over samples and positions. */
static xg_tensor *xg__per_channel(xg_tensor *vector)
{
    return xg_reshape(vector, xg_shape4(1, xg_shape_of(vector).n, 1, 1));
}

/* y + NAME.bias, one number a channel. */
static xg_tensor *xg__bias(xg_scope *s, xg_tensor *y, xg_init init, double gain)
{
    xg_shape vector = xg_shape4(xg_shape_of(y).c, 1, 1, 1);
    return xg_add(y, xg__per_channel(xg_param(s, "bias", vector, init, gain)));
}

/* NAME.weight of a convolution. */
static xg_tensor *xg__kernel(xg_scope *s, xg_shape shape, xg_init init, double gain)
{
    xg_tensor *w = xg_param(s, "weight", shape, init, gain);
    if (xg_failed(s->tape)) return w;
    xg__entry *entry = &s->params->entry[xg_params_find(s->params, xg_name_of(w))];
    if (entry->axes != 4) entry->axes = 4;
    return w;
}

/* The convolutions' defaults, and whether channels divide into groups. */
static bool xg__layer_window(const xg_scope *s, const char *name, const xg_tensor *x, int channels,
                             xg_window *k)
{
    *k = xg__window(*k);
    if (k->groups > 0 && channels > 0 && x->shape.c % k->groups == 0 && channels % k->groups == 0) {
        return true;
    }
    xg_fail(s->tape, XG_ERR_SHAPE, "layer '%.80s': %d to %d channels in %d groups", name,
            x->shape.c, channels, k->groups);
    return false;
}

XG_API_DEF xg_tensor *xg_conv(xg_scope *s, const char *name, xg_tensor *x, int channels,
                              const xg_conv_options *o)
{
    xg_conv_options k = XG__ZEROS;
    if (o) k = *o;
    if (!xg__layer_ready(s, name, x) || !xg__layer_window(s, name, x, channels, &k.window)) {
        return xg__poison(s->tape);
    }
    xg_init init = k.zero_init ? XG_INIT_ZERO : k.init ? k.init : XG_INIT_KAIMING;
    xg_shape shape = xg_shape4(channels, x->shape.c / k.window.groups, k.window.kh, k.window.kw);
    xg_scope inner = xg_in(s, name);
    xg_tensor *w = xg__kernel(&inner, shape, init, k.gain);
    xg_tensor *y = s->train ? xg_conv2d(x, w, k.window) : xg__conv2d_waiting(x, w, k.window);
    if (k.bias) y = xg__bias(&inner, y, XG_INIT_ZERO, 1);
    return xg__named(s, name, y);
}

/* x [n,i,1,1] and w [o,i,1,1] to [n,o,1,1]: a matrix product over the whole batch. */
static xg_tensor *xg__linear(xg_tensor *x, xg_tensor *w)
{
    xg_shape a = xg_shape_of(x), b = xg_shape_of(w);
    xg_tensor *rows = xg_reshape(x, xg_shape4(1, 1, a.n, a.c));
    xg_tensor *columns = xg_reshape(w, xg_shape4(1, 1, b.n, b.c));
    return xg_reshape(xg_matmul(rows, columns, false, true), xg_shape4(a.n, b.n, 1, 1));
}

/* y = W x + b for every sample. */
static xg_tensor *xg__dense(xg_scope *s, const char *name, xg_tensor *x, int features, bool bias,
                            xg_init init)
{
    if (!xg__layer_ready(s, name, x)) return xg__poison(s->tape);
    xg_scope inner = xg_in(s, name);
    xg_tensor *flat = xg_flatten(x);
    int inputs = xg_shape_of(flat).c;
    xg_tensor *w = xg_param(&inner, "weight", xg_shape4(features, inputs, 1, 1), init, 1);
    xg_tensor *y = xg__linear(flat, w);
    /* A bias starts in the range of the weights; its own fan-in is 1. */
    if (bias) y = xg__bias(&inner, y, init, 1 / sqrt((double)inputs));
    return xg__named(s, name, y);
}

XG_API_DEF xg_tensor *xg_dense(xg_scope *s, const char *name, xg_tensor *x, int features, bool bias)
{
    return xg__dense(s, name, x, features, bias, XG_INIT_LECUN_UNIFORM);
}

/* Batch norm (Ioffe and Szegedy 2015), mean and variance of each channel over n, h and w:
 *
 *     centred      y = weight (x - mean) / sqrt(var + eps) + bias
 *     uncentred    y = weight x / sqrt(var + eps)              for B-cos nets (Rao 2023)
 *
 * The uncentred one keeps the mean in, but its variance is the usual one, about the mean. It has no
 * bias, so what a B-cos net says is all due to its input. */
typedef struct xg__norm {
    xg_tensor *weight, *bias;                      /* bias NULL when uncentred */
    xg_tensor *running_mean, *running_var;         /* leaves; the mean is NULL when uncentred */
    double     eps, momentum;
} xg__norm;

static xg__norm xg__norm_params(xg_scope *s, int channels, const xg_norm_options *o)
{
    xg__norm n = XG__ZEROS;
    xg_shape vector = xg_shape4(channels, 1, 1, 1);
    xg_init start = o->zero_gain ? XG_INIT_ZERO : XG_INIT_ONE;
    n.weight = xg__per_channel(xg_param(s, "weight", vector, start, 1));
    if (!o->uncentred) {
        n.bias = xg__per_channel(xg_param(s, "bias", vector, XG_INIT_ZERO, 1));
        n.running_mean = xg_buffer(s, "running_mean", vector, XG_INIT_ZERO);
    }
    n.running_var = xg_buffer(s, "running_var", vector, XG_INIT_ONE);
    n.eps = o->eps > 0 ? o->eps : 1e-5;
    n.momentum = o->momentum > 0 ? o->momentum : 0.1;
    return n;
}

/* weight / sqrt(var + eps) */
static xg_tensor *xg__norm_scale(const xg__norm *n, xg_tensor *var)
{
    return xg_div(n->weight, xg_sqrt(xg_affine(var, 1, n->eps)));
}

/* Running statistics become a scale and a shift: two operations on the batch. */
static xg_tensor *xg__norm_eval(const xg__norm *n, xg_tensor *x)
{
    xg_tensor *scale = xg__norm_scale(n, xg__per_channel(n->running_var));
    xg_tensor *y = xg_mul(x, scale);
    if (!n->bias) return y;
    return xg_add(y, xg_sub(n->bias, xg_mul(xg__per_channel(n->running_mean), scale)));
}

/* A running statistic moves when the training step has succeeded, unless its entry is frozen. */
static void xg__norm_track(xg_scope *s, xg_tensor *running, xg_tensor *value, double momentum)
{
    if (xg_failed(s->tape)) return;
    int at = xg_params_find(s->params, xg_name_of(running));
    if (at < 0 || s->params->entry[at].frozen) return;
    xg__defer_update(running, value, momentum);
}

/* Batch statistics, as operations like any others: the gradient passes through mean and variance,
 * which ties the samples of a batch together. */
static xg_tensor *xg__norm_train(xg_scope *s, const xg__norm *n, xg_tensor *x)
{
    xg_shape per_channel = xg_shape4(1, xg_shape_of(x).c, 1, 1);
    double count = (double)xg_size(x) / per_channel.c;
    xg_tensor *mean = xg_mean_to(x, per_channel);
    xg_tensor *centred = xg_sub(x, mean);
    xg_tensor *var = xg_mean_to(xg_square(centred), per_channel);
    if (!n->bias) {
        /* To explanations the scale is a constant factor, part of the dynamic weight. */
        xg__norm_track(s, n->running_var, var, n->momentum);
        return xg_mul(x, xg_barrier(xg__norm_scale(n, var)));
    }
    /* As PyTorch: the biased variance normalises, the unbiased one is remembered. */
    xg__norm_track(s, n->running_mean, mean, n->momentum);
    xg__norm_track(s, n->running_var, xg_affine(var, count / (count - 1), 0), n->momentum);
    return xg_add(xg_mul(centred, xg__norm_scale(n, var)), n->bias);
}

XG_API_DEF xg_tensor *xg_batch_norm(xg_scope *s, const char *name, xg_tensor *x,
                                    const xg_norm_options *o)
{
    xg_norm_options k = XG__ZEROS;
    if (o) k = *o;
    if (!xg__layer_ready(s, name, x)) return xg__poison(s->tape);
    bool batch = s->train && !k.frozen;
    if (batch && !k.uncentred && xg_size(x) == (size_t)x->shape.c) {
        xg_fail(s->tape, XG_ERR_SHAPE, "layer '%.80s': a batch with one value a channel has no "
                "variance to train with", name);
        return xg__poison(s->tape);
    }
    xg_scope inner = xg_in(s, name);
    xg__norm n = xg__norm_params(&inner, x->shape.c, &k);
    return xg__named(s, name, batch ? xg__norm_train(s, &n, x) : xg__norm_eval(&n, x));
}

XG_API_DEF xg_tensor *xg_dropout(xg_scope *s, xg_tensor *x, double p)
{
    if (!s->train || p == 0) return x;
    if (!(p > 0 && p < 1) || !s->rng) {
        xg_fail(s->tape, XG_ERR_ARGUMENT, "dropout: needs a rate in [0, 1), here %g, and the scope "
                "a random generator", p);
        return xg__poison(s->tape);
    }
    xg_tensor *mask = xg_leaf(s->tape, xg_shape_of(x), NULL);
    xg_real *m = xg_leaf_data(mask);
    for (size_t i = 0, size = m ? xg_size(mask) : 0; i < size; i++) {
        m[i] = xg_rng_uniform(s->rng) < p ? 0 : (xg_real)(1 / (1 - p));
    }
    return xg_mul(x, mask);
}

/* B-cos units (Boehle 2022; Rao 2023, 3.1). For a patch p and a weight w of the same size:
 *
 *     lin = p . w / |w|      |cos| = |lin| / |p|      out = |cos|^(B-1) lin
 *
 * With the factor |cos|^(B-1) held constant the unit is linear in p, and so is a net of them: one
 * pass back gives what each pixel contributes, and the contributions add up to the logit. */

/* Weights of unit length. There is no eps: a weight of zeros has no direction and gives NaN. */
static xg_tensor *xg__unit_rows(xg_tensor *w)
{
    return xg_div(w, xg_sqrt(xg_sum_to(xg_square(w), xg_shape4(xg_shape_of(w).n, 1, 1, 1))));
}

/* |p| of every patch, each group apart: [n groups, 1, oh, ow]. Squares are added up over channels
 * first and over the window then, as a mean times its size. */
static xg_tensor *xg__patch_norm(xg_tensor *x, xg_window k)
{
    xg_shape s = xg_shape_of(x);
    int rows = s.n * k.groups;
    xg_tensor *square = xg_reshape(xg_square(x), xg_shape4(rows, s.c / k.groups, s.h, s.w));
    square = xg_sum_to(square, xg_shape4(rows, 1, s.h, s.w));
    k.groups = 1;
    if (k.kh * k.kw > 1 || k.stride > 1 || k.pad > 0) square = xg_avgpool(square, k);
    return xg_sqrt(xg_affine(square, k.kh * k.kw, 1e-6));
}

/* The best of `candidates` neighbouring channels: a selection, hence linear to explanations. */
static xg_tensor *xg__maxout(xg_tensor *x, int candidates)
{
    xg_shape s = xg_shape_of(x);
    if (candidates == 1) return x;
    int c = s.c / candidates;
    xg_tensor *rows = xg_reshape(x, xg_shape4(s.n, c, candidates, s.h * s.w));
    rows = xg_max_to(rows, xg_shape4(s.n, c, 1, s.h * s.w));
    return xg_reshape(rows, xg_shape4(s.n, c, s.h, s.w));
}

/* lin |cos|^(B-1). The barrier lets explanations take the factor for a constant while training goes
 * through it, also when it trains on an explanation; detaching it would cut both. */
static xg_tensor *xg__bcos_scale(xg_tensor *linear, xg_tensor *norm, const xg_bcos_options *o)
{
    xg_shape s = xg_shape_of(linear), rows = xg_shape_of(norm);
    xg_tensor *grouped = xg_reshape(linear, xg_shape4(rows.n, s.c * s.n / rows.n, s.h, s.w));
    xg_tensor *factor = xg_div(xg_abs(grouped), norm);
    if (o->b != 2) factor = xg_pow(xg_affine(factor, 1, 1e-6), o->b - 1);
    factor = o->detach ? xg_detach(factor) : xg_barrier(factor);
    return xg_reshape(xg_mul(grouped, factor), s);
}

static bool xg__bcos_defaults(const xg_scope *s, const char *name, int outputs,
                              const xg_bcos_options *o, xg_bcos_options *k)
{
    memset(k, 0, sizeof *k);
    if (o) *k = *o;
    if (k->b == 0) k->b = 2;
    if (k->maxout == 0) k->maxout = 1;
    if (k->b >= 1 && k->maxout >= 1 && outputs <= INT_MAX / k->maxout) return true;
    xg_fail(s->tape, XG_ERR_ARGUMENT, "layer '%.80s': B %g and maxout %d for %d outputs", name,
            k->b, k->maxout, outputs);
    return false;
}

XG_API_DEF xg_tensor *xg_bcos_conv(xg_scope *s, const char *name, xg_tensor *x, int channels,
                                   const xg_bcos_options *o)
{
    xg_bcos_options k;
    if (!xg__layer_ready(s, name, x) || !xg__bcos_defaults(s, name, channels, o, &k) ||
        !xg__layer_window(s, name, x, channels, &k.window)) {
        return xg__poison(s->tape);
    }
    xg_window window = k.window;
    int inputs = x->shape.c / window.groups;
    xg_shape shape = xg_shape4(channels * k.maxout, inputs, window.kh, window.kw);
    xg_scope inner = xg_in(s, name);
    xg_tensor *w = xg__kernel(&inner, shape, XG_INIT_KAIMING_FAN_OUT, 1);
    xg_tensor *y = xg__maxout(xg_conv2d(x, xg__unit_rows(w), window), k.maxout);
    if (k.b != 1) y = xg__bcos_scale(y, xg__patch_norm(x, window), &k);
    return xg__named(s, name, y);
}

XG_API_DEF xg_tensor *xg_bcos_dense(xg_scope *s, const char *name, xg_tensor *x, int features,
                                    const xg_bcos_options *o)
{
    xg_bcos_options k;
    if (!xg__layer_ready(s, name, x) || !xg__bcos_defaults(s, name, features, o, &k)) {
        return xg__poison(s->tape);
    }
    xg_window whole = { 1, 1, 1, 0, 1, 1 };
    xg_tensor *flat = xg_flatten(x);
    xg_shape shape = xg_shape4(features * k.maxout, xg_shape_of(flat).c, 1, 1);
    xg_scope inner = xg_in(s, name);
    xg_tensor *w = xg_param(&inner, "weight", shape, XG_INIT_KAIMING_FAN_OUT, 1);
    xg_tensor *y = xg__maxout(xg__linear(flat, xg__unit_rows(w)), k.maxout);
    if (k.b != 1) y = xg__bcos_scale(y, xg__patch_norm(flat, whole), &k);
    return xg__named(s, name, y);
}

XG_API_DEF xg_tensor *xg_bcos_input(xg_tensor *x)
{
    return xg_concat(x, xg_affine(x, -1, 1), 1);
}

/* 7.3 Networks: plain functions that call layers. The first call on a store makes the weights. */

static xg_window xg__square_window(int kernel, int stride, int pad)
{
    const xg_window k = { kernel, kernel, stride, pad, 1, 1 };
    return k;
}

/* "layer3": the name of the i-th thing, i from 1. */
static xg_tensor *xg__named_at(const xg_scope *s, const char *name, int i, xg_tensor *x)
{
    char text[32];
    snprintf(text, sizeof text, "%.16s%d", name, i);
    return xg__named(s, text, x);
}

/* input - [dense - ReLU] x layers - dense */
XG_API_DEF xg_tensor *xg_mlp(xg_scope *s, xg_tensor *x, const xg_mlp_options *o)
{
    int hidden = o && o->hidden ? o->hidden : 512;
    int layers = o && o->layers ? o->layers : 2;
    int classes = o && o->classes ? o->classes : 10;
    x = xg__named(s, "input", x);
    for (int i = 1; i <= layers; i++) {
        char name[24];
        snprintf(name, sizeof name, "fc%d", i);
        x = xg__named_at(s, "layer", i, xg_relu(xg_dense(s, name, x, hidden, true)));
    }
    return xg_dense(s, "fc", xg__named(s, "features", x), classes, true);
}

static xg_tensor *xg__cnn_layer(xg_scope *s, xg_tensor *x, int i, int channels, bool batch_norm)
{
    char conv[24], norm[24];
    snprintf(conv, sizeof conv, "conv%d", i);
    snprintf(norm, sizeof norm, "bn%d", i);
    xg_conv_options k = XG__ZEROS;
    k.window = xg__square_window(3, 1, 1);
    k.bias = !batch_norm;                  /* a norm has its own */
    x = xg_conv(s, conv, x, channels, &k);
    if (batch_norm) x = xg_batch_norm(s, norm, x, NULL);
    return xg__named_at(s, "layer", i, xg_maxpool(xg_relu(x), xg__square_window(2, 2, 0)));
}

/* input - [3x3 convolution - (norm) - ReLU - 2x2 maximum] x layers - (pool) - (dense) - dense */
XG_API_DEF xg_tensor *xg_cnn(xg_scope *s, xg_tensor *x, const xg_cnn_options *o)
{
    xg_cnn_options k = XG__ZEROS;
    if (o) k = *o;
    if (!k.width) k.width = 16;
    if (!k.layers) k.layers = 3;
    if (!k.classes) k.classes = 10;
    if (k.width < 1 || k.width > 4096 || k.layers < 1 || k.layers > 12) {
        xg_fail(s->tape, XG_ERR_ARGUMENT, "cnn: needs a width in [1, 4096] and 1 to 12 layers, "
                "here %d and %d", k.width, k.layers);
    }
    x = xg__named(s, "input", x);
    for (int i = 0; i < k.layers && !xg_failed(s->tape); i++) {
        x = xg__cnn_layer(s, x, i + 1, k.width << i, k.batch_norm);
    }
    x = xg__named(s, "features", x);
    if (k.global_pool) x = xg_global_avgpool(x);
    if (k.hidden) x = xg_relu(xg_dense(s, "fc1", x, k.hidden, true));
    return xg_dense(s, "fc", x, k.classes, true);
}

/* Residual networks (He et al. 2016) in three families of one shape:
 *
 *     x ----------- shortcut ------------
 *      \                                 + - ReLU        basic: 3x3, 3x3
 *       conv - norm - ReLU - conv - norm                 bottleneck: 1x1, 3x3, 1x1 (x 4 channels)
 *
 *     plain   as drawn. Shortcuts that change shape are 1x1 convolutions with norm ("downsample");
 *             at the CIFAR depths they have no weights (option A)
 *     B-cos   B-cos convolutions, uncentred norms, no ReLU, average instead of maximum pooling, the
 *             classifier before the global pooling (Rao 2023)
 *     X       no norms and no biases but the classifier's (Hesse 2021). What norms did for the
 *             start of training, Fixup does (Zhang et al. 2019): residual branches begin at zero */
typedef struct xg__resnet_plan {
    int  depth;
    bool bottleneck, cifar;
    int  stages, blocks[4];
} xg__resnet_plan;

static const xg__resnet_plan xg__resnet_plans[] = {
    { 18, false, false, 4, { 2, 2, 2, 2 } },
    { 34, false, false, 4, { 3, 4, 6, 3 } },
    { 50, true,  false, 4, { 3, 4, 6, 3 } },
    { 20, false, true,  3, { 3, 3, 3, 0 } },
    { 32, false, true,  3, { 5, 5, 5, 0 } },
    { 44, false, true,  3, { 7, 7, 7, 0 } },
    { 56, false, true,  3, { 9, 9, 9, 0 } }
};

typedef struct xg__resnet {
    xg__resnet_plan   plan;
    xg_resnet_options o;           /* defaults resolved */
    double branch_gain;            /* Fixup: how small a residual branch starts */
} xg__resnet;

/* Resolves the options; fails the tape when there is no such network. */
static bool xg__resnet_open(xg_scope *s, const xg_resnet_options *o, xg__resnet *r)
{
    memset(r, 0, sizeof *r);
    if (o) r->o = *o;
    if (!r->o.depth) r->o.depth = 18;
    for (size_t i = 0; i < sizeof xg__resnet_plans / sizeof xg__resnet_plans[0]; i++) {
        if (xg__resnet_plans[i].depth == r->o.depth) r->plan = xg__resnet_plans[i];
    }
    if (!r->o.stages) r->o.stages = r->plan.stages;
    if (!r->o.classes) r->o.classes = r->plan.cifar ? 10 : 1000;
    if (r->o.logit_bias == 0) r->o.logit_bias = log(0.001 / 0.999);
    if (!r->plan.depth || r->o.stages < 1 || r->o.stages > r->plan.stages) {
        xg_fail(s->tape, XG_ERR_ARGUMENT, "resnet: no network of depth %d with %d stages",
                r->o.depth, r->o.stages);
        return false;
    }
    if (r->o.folded && r->o.family != XG_FAMILY_PLAIN) {
        xg_fail(s->tape, XG_ERR_ARGUMENT, "resnet: only the plain family has norms to fold");
        return false;
    }
    /* Zhang et al. 2019: L^(-1/(2m-2)) for L branches of m convolutions. */
    int branches = 0;
    for (int i = 0; i < r->o.stages; i++) branches += r->plan.blocks[i];
    r->branch_gain = pow(branches, r->plan.bottleneck ? -0.25 : -0.5);
    return true;
}

/* One convolution and what stands behind it. */
typedef struct xg__unit {
    const char *conv, *norm;
    int    channels, kernel, stride;
    double gain;                   /* Fixup: of the initial weights; 0 for the last of a branch */
} xg__unit;

/* The only place where the families differ inside a block, but for the ReLU. */
static xg_tensor *xg__resnet_unit(const xg__resnet *r, xg_scope *s, xg_tensor *x, xg__unit u)
{
    bool bcos = r->o.family == XG_FAMILY_BCOS, fixup = r->o.family == XG_FAMILY_X;
    xg_window window = xg__square_window(u.kernel, u.stride, u.kernel / 2);
    if (bcos) {
        xg_bcos_options k = XG__ZEROS;
        k.window = window;
        x = xg_bcos_conv(s, u.conv, x, u.channels, &k);
    } else {
        xg_conv_options k = XG__ZEROS;
        k.window = window;
        k.bias = r->o.folded;
        k.init = XG_INIT_KAIMING_FAN_OUT;
        k.zero_init = fixup && u.gain == 0;
        if (fixup) k.gain = u.gain;
        x = xg_conv(s, u.conv, x, u.channels, &k);
    }
    if (fixup || r->o.folded) return x;
    xg_norm_options k = XG__ZEROS;
    k.uncentred = bcos;
    k.frozen = r->o.frozen_norm;
    return xg_batch_norm(s, u.norm, x, &k);
}

/* B-cos networks are linear between their dynamic factors: they have no other non-linearity. */
static xg_tensor *xg__resnet_relu(const xg__resnet *r, xg_tensor *x)
{
    return r->o.family == XG_FAMILY_BCOS ? x : xg_relu(x);
}

/* x itself where it fits. */
static xg_tensor *xg__resnet_shortcut(const xg__resnet *r, xg_scope *s, xg_tensor *x, int channels,
                                      int stride)
{
    xg_shape from = xg_shape_of(x);
    if (stride == 1 && from.c == channels) return x;
    if (!r->plan.cifar) {
        xg__unit project = { "0", "1", channels, 1, stride, 1 };
        xg_scope inner = xg_in(s, "downsample");
        return xg__resnet_unit(r, &inner, x, project);
    }
    /* Option A: every second row and column, zeros for the new channels on both sides. */
    x = xg_avgpool(x, xg__square_window(1, stride, 0));
    xg_shape cut = xg_shape_of(x);
    xg_shape at = xg_shape4(0, (channels - from.c) / 2, 0, 0);
    return xg_pad(x, at, xg_shape4(cut.n, channels, cut.h, cut.w));
}

static xg_tensor *xg__resnet_block(const xg__resnet *r, xg_scope *s, xg_tensor *x, int width,
                                   int stride)
{
    static const xg__unit basic[2] = {             /* channels in widths; stride 0: the block's */
        { "conv1", "bn1", 1, 3, 0, 1 }, { "conv2", "bn2", 1, 3, 1, 0 }
    };
    static const xg__unit deep[3] = {
        { "conv1", "bn1", 1, 1, 1, 1 }, { "conv2", "bn2", 1, 3, 0, 1 },
        { "conv3", "bn3", 4, 1, 1, 0 }
    };
    const xg__unit *units = r->plan.bottleneck ? deep : basic;
    int count = r->plan.bottleneck ? 3 : 2, channels = 0;
    xg_tensor *y = x;
    for (int i = 0; i < count; i++) {
        xg__unit u = units[i];
        u.channels = channels = u.channels * width;
        if (u.stride == 0) u.stride = stride;
        u.gain *= r->branch_gain;
        if (i > 0) y = xg__resnet_relu(r, y);
        y = xg__resnet_unit(r, s, y, u);
    }
    return xg__resnet_relu(r, xg_add(y, xg__resnet_shortcut(r, s, x, channels, stride)));
}

/* 7x7 with stride 2 and a pooling for large pictures, one 3x3 for small ones. */
static xg_tensor *xg__resnet_stem(const xg__resnet *r, xg_scope *s, xg_tensor *x)
{
    bool small = r->plan.cifar || r->o.small_input;
    xg__unit u = { "conv1", "bn1", r->plan.cifar ? 16 : 64, small ? 3 : 7, small ? 1 : 2, 1 };
    x = xg__resnet_relu(r, xg__resnet_unit(r, s, x, u));
    if (small) return x;
    xg_window pool = xg__square_window(3, 2, 1);
    return r->o.family == XG_FAMILY_BCOS ? xg_avgpool(x, pool) : xg_maxpool(x, pool);
}

static xg_tensor *xg__resnet_head(const xg__resnet *r, xg_scope *s, xg_tensor *x)
{
    const char *name = r->plan.cifar ? "linear" : "fc";
    if (r->o.family == XG_FAMILY_BCOS) {           /* classify every position, then average */
        x = xg_global_avgpool(xg_bcos_conv(s, name, x, r->o.classes, NULL));
        return xg_affine(x, 1, r->o.logit_bias);
    }
    xg_init init = r->o.family == XG_FAMILY_X ? XG_INIT_ZERO : XG_INIT_LECUN_UNIFORM;
    return xg__dense(s, name, xg_global_avgpool(x), r->o.classes, true, init);
}

XG_API_DEF xg_tensor *xg_resnet(xg_scope *s, xg_tensor *x, const xg_resnet_options *o)
{
    xg__resnet r;
    if (!xg__resnet_open(s, o, &r)) return xg__poison(s->tape);
    int first = r.plan.cifar ? 16 : 64;
    x = xg__resnet_stem(&r, s, xg__named(s, "input", x));
    for (int i = 0; i < r.o.stages; i++) {
        char stage[24];
        snprintf(stage, sizeof stage, "layer%d", i + 1);
        for (int j = 0; j < r.plan.blocks[i]; j++) {
            xg_scope inner = xg_in_at(s, stage, j);
            x = xg__resnet_block(&r, &inner, x, first << i, i > 0 && j == 0 ? 2 : 1);
        }
        x = xg__named(s, stage, x);
    }
    return xg__resnet_head(&r, s, xg__named(s, "features", x));
}

/* SqueezeNet 1.1 (Iandola et al. 2016): few channels in, many out.
 *
 *     fire:   x - 1x1 squeeze - ReLU - 1x1 expand - ReLU - concat
 *                                    \ 3x3 expand - ReLU /
 */

static xg_tensor *xg__conv_relu(xg_scope *s, const char *name, xg_tensor *x, int channels,
                                xg_window window)
{
    xg_conv_options k = XG__ZEROS;
    k.window = window;
    k.bias = true;
    return xg_relu(xg_conv(s, name, x, channels, &k));
}

/* 3x3 maximum, stride 2, where the last window may hang over the edge. The zeros that complete it
 * never win over what a ReLU made. */
static xg_tensor *xg__ceil_pool(xg_tensor *x)
{
    xg_shape s = xg_shape_of(x);
    xg_shape even = xg_shape4(s.n, s.c, s.h + (s.h + 1) % 2, s.w + (s.w + 1) % 2);
    if (!xg_shape_same(s, even)) x = xg_pad(x, xg_shape4(0, 0, 0, 0), even);
    return xg_maxpool(x, xg__square_window(3, 2, 0));
}

static xg_tensor *xg__fire(xg_scope *s, int i, xg_tensor *x, int squeeze, int expand)
{
    char name[40];
    snprintf(name, sizeof name, "fire%d/squeeze1x1", i);
    x = xg__conv_relu(s, name, x, squeeze, xg__square_window(1, 1, 0));
    snprintf(name, sizeof name, "fire%d/expand1x1", i);
    xg_tensor *narrow = xg__conv_relu(s, name, x, expand, xg__square_window(1, 1, 0));
    snprintf(name, sizeof name, "fire%d/expand3x3", i);
    xg_tensor *wide = xg__conv_relu(s, name, x, expand, xg__square_window(3, 1, 1));
    return xg__named_at(s, "fire", i, xg_concat(narrow, wide, 1));
}

XG_API_DEF xg_tensor *xg_squeezenet(xg_scope *s, xg_tensor *x)
{
    static const struct { int squeeze, expand; bool pool; } fires[8] = {
        { 16, 64, true },   { 16, 64, false },  { 32, 128, true },  { 32, 128, false },
        { 48, 192, true },  { 48, 192, false }, { 64, 256, false }, { 64, 256, false }
    };                                             /* pool: before it */
    x = xg__named(s, "input", x);
    x = xg__conv_relu(s, "conv1", x, 64, xg__square_window(3, 2, 0));
    for (int i = 0; i < 8; i++) {
        if (fires[i].pool) x = xg__ceil_pool(x);
        x = xg__fire(s, i + 2, x, fires[i].squeeze, fires[i].expand);
    }
    x = xg_dropout(s, xg__named(s, "features", x), 0.5);
    return xg_global_avgpool(xg__conv_relu(s, "conv10", x, 1000, xg__square_window(1, 1, 1)));
}

/* MobileNetV2 (Sandler et al. 2018), norms folded; convolutions are numbered in order, c00 to c52.
 *
 *     block:  x - 1x1 widen - ReLU6 - 3x3 each channel - ReLU6 - 1x1 narrow - (+ x)
 */

typedef struct xg__mobile {
    xg_scope *scope;
    int       next;                /* number of the next convolution */
} xg__mobile;

/* "Same" padding: an output for every stride-th input; an odd zero goes to the bottom and right. */
static xg_tensor *xg__same_pad(xg_tensor *x, xg_window *k)
{
    xg_shape s = xg_shape_of(x);
    int rows = (s.h - 1) / k->stride * k->stride + k->kh - s.h;
    int columns = (s.w - 1) / k->stride * k->stride + k->kw - s.w;
    if (rows < 0) rows = 0;
    if (columns < 0) columns = 0;
    if (rows == columns && rows % 2 == 0) {        /* the same on every side: no copy */
        k->pad = rows / 2;
        return x;
    }
    return xg_pad(x, xg_shape4(0, 0, rows / 2, columns / 2),
                  xg_shape4(s.n, s.c, s.h + rows, s.w + columns));
}

/* The ReLU of a ReLU6 is one of its own, for readings that have rules for ReLUs. */
static xg_tensor *xg__mobile_conv(xg__mobile *m, xg_tensor *x, int channels, int kernel, int stride,
                                  bool depthwise, bool relu6)
{
    char name[24];
    snprintf(name, sizeof name, "c%02d", m->next++);
    xg_conv_options k = XG__ZEROS;
    k.window = xg__square_window(kernel, stride, 0);
    k.bias = true;
    if (depthwise) k.window.groups = channels;
    x = xg__same_pad(x, &k.window);
    x = xg_conv(m->scope, name, x, channels, &k);
    return relu6 ? xg_clamp(xg_relu(x), 0, 6) : x;
}

/* The shortcut is there where shapes allow it; the first block of all is not widened. */
static xg_tensor *xg__mobile_block(xg__mobile *m, xg_tensor *x, int expand, int channels,
                                   int stride)
{
    int inputs = xg_shape_of(x).c, inside = inputs * expand;
    xg_tensor *y = x;
    if (expand > 1) y = xg__mobile_conv(m, y, inside, 1, 1, false, true);
    y = xg__mobile_conv(m, y, inside, 3, stride, true, true);
    y = xg__mobile_conv(m, y, channels, 1, 1, false, false);
    return stride == 1 && inputs == channels ? xg_add(x, y) : y;
}

XG_API_DEF xg_tensor *xg_mobilenet_v2(xg_scope *s, xg_tensor *x)
{
    static const struct { int expand, channels, blocks, stride; } stages[7] = {
        { 1, 16, 1, 1 }, { 6, 24, 2, 2 }, { 6, 32, 3, 2 }, { 6, 64, 4, 2 },
        { 6, 96, 3, 1 }, { 6, 160, 3, 2 }, { 6, 320, 1, 1 }
    };
    xg__mobile m = { s, 0 };
    x = xg__mobile_conv(&m, xg__named(s, "input", x), 32, 3, 2, false, true);
    for (int i = 0; i < 7; i++) {
        for (int j = 0; j < stages[i].blocks; j++) {
            int stride = j == 0 ? stages[i].stride : 1;
            x = xg__mobile_block(&m, x, stages[i].expand, stages[i].channels, stride);
        }
        x = xg__named_at(s, "layer", i + 1, x);
    }
    x = xg__named(s, "features", xg__mobile_conv(&m, x, 1280, 1, 1, false, true));
    return xg__mobile_conv(&m, xg_global_avgpool(x), 1001, 1, 1, false, false);
}

/* 7.4 Optimisers. A step happens wholly or not at all. It first computes and checks everything (is
 *     the tape good, are loss and gradients finite), then takes all memory that it needs, and only
 *     then changes numbers: weights, its state, its step count, running statistics. With g the
 *     gradient after clipping, d its weight decay and t the number of the step from 1:
 *
 *     SGD     g += d w;   v = momentum v + g;   w -= lr v            (Nesterov: g + momentum v)
 *     Adam    g += d w;   m = b1 m + (1 - b1) g;   v = b2 v + (1 - b2) g^2
 *             w -= lr m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)
 *     AdamW   the same, but w *= 1 - lr d in place of g += d w
 *
 *     t counts the optimiser's steps, not those of each weight: what it begins to train late should
 *     have an optimiser, that is a slot, of its own. */

static xg_optim xg__optim_defaults(const xg_optim *o)
{
    xg_optim r = XG__ZEROS;
    if (o) r = *o;
    if (r.lr == 0) r.lr = r.kind == XG_SGD ? 0.01 : 0.001;
    if (r.beta1 == 0) r.beta1 = 0.9;
    if (r.beta2 == 0) r.beta2 = 0.999;
    if (r.eps == 0) r.eps = 1e-8;
    if (r.factor == 0) r.factor = 0.1;
    if (!r.slot) r.slot = "optim";
    return r;
}

/* What is wrong with the options, or NULL. Comparisons are written so that NaN fails them. */
static const char *xg__optim_wrong(const xg_optim *o)
{
    if (o->kind != XG_SGD && o->kind != XG_ADAM && o->kind != XG_ADAMW) return "no such kind";
    if (!(o->lr > 0) || !isfinite(o->lr)) return "lr must be positive";
    if (!(o->momentum >= 0 && o->momentum < 1)) return "momentum must be in [0, 1)";
    if (o->nesterov && o->momentum == 0) return "nesterov needs momentum";
    if (!(o->beta1 > 0 && o->beta1 < 1)) return "beta1 must be in (0, 1)";
    if (!(o->beta2 > 0 && o->beta2 < 1)) return "beta2 must be in (0, 1)";
    if (!(o->eps > 0)) return "eps must be positive";
    if (!(o->factor > 0)) return "factor must be positive";
    if (!(o->weight_decay >= 0) || !isfinite(o->weight_decay)) return "weight_decay is negative";
    if (!(o->clip_norm >= 0)) return "clip_norm is negative";
    if (o->warmup < 0) return "warmup is negative";
    if (o->schedule == XG_COSINE && o->total <= o->warmup) return "total must exceed warmup";
    if (o->schedule == XG_STEP && o->every < 1) return "every must be at least 1";
    return NULL;
}

/* Steps count from 0. Warm-up rises to the full rate at its last step; the cosine falls from there
 * to 0 at `total`; drops come after every so many steps, warm-up included. */
XG_API_DEF double xg_optim_lr(const xg_optim *o, int64_t step)
{
    xg_optim r = xg__optim_defaults(o);
    double lr = r.lr;
    if (step < 0) step = 0;
    if (r.schedule == XG_STEP && r.every > 0) {
        lr *= pow(r.factor, (double)(step / r.every));
    } else if (r.schedule == XG_COSINE && r.total > r.warmup && step >= r.warmup) {
        double along = (double)(step - r.warmup) / (r.total - r.warmup);
        lr *= 0.5 * (1 + cos(3.14159265358979323846 * (along < 1 ? along : 1)));
    }
    return step < r.warmup ? lr * (double)(step + 1) / r.warmup : lr;
}

XG_API_DEF int64_t xg_optim_steps(const xg_optim *o, const xg_params *params)
{
    const char *slot = xg__optim_defaults(o).slot;
    for (const xg__steps *at = params ? params->steps : NULL; at; at = at->next) {
        if (!strcmp(at->optim, slot)) return at->steps;
    }
    return 0;
}

static xg__rates xg__rates_of(const xg_optim *o, int64_t steps, double scale)
{
    xg__rates r;
    double lr = xg_optim_lr(o, steps), t = (double)steps + 1;
    r.lr = (xg_real)lr;
    r.scale = (xg_real)scale;
    r.decay = (xg_real)(o->kind == XG_ADAMW ? 0 : o->weight_decay);
    r.momentum = (xg_real)o->momentum;
    r.beta1 = (xg_real)o->beta1;
    r.beta2 = (xg_real)o->beta2;
    r.fresh1 = (xg_real)(1 - o->beta1);
    r.fresh2 = (xg_real)(1 - o->beta2);
    r.rate = (xg_real)(lr / (1 - pow(o->beta1, t)));
    r.root = (xg_real)(1 / sqrt(1 - pow(o->beta2, t)));
    r.eps = (xg_real)o->eps;
    r.keep = (xg_real)(o->kind == XG_ADAMW ? 1 - lr * o->weight_decay : 1);
    r.nesterov = o->nesterov;
    return r;
}

static bool xg__optim_idle(xg_tape *tape, const char *only)
{
    xg_fail(tape, XG_ERR_NAME, "optimiser: the tape used no trainable parameter of this store "
            "whose name starts with '%.80s'", only ? only : "");
    return false;
}

/* Finds the store's entry behind every leaf and tells it which gradient is its own. Leaves come in
 * store order as a rule, so the search goes on from the last hit. */
static bool xg__optim_match(const xg_optim *o, xg_params *params, xg_tape *tape,
                            xg_tensor *const *leaf, xg_tensor *const *grad, int count)
{
    for (int i = 0; i < params->count; i++) params->entry[i].chosen = -1;
    int at = 0, chosen = 0;
    for (int k = 0; k < count; k++) {
        int tries = 0;
        while (leaf[k] && tries < params->count && params->entry[at].data != leaf[k]->data) {
            at = (at + 1) % params->count;
            tries++;
        }
        bool ours = leaf[k] && tries < params->count;
        if (!ours || params->entry[at].chosen >= 0) {
            xg_fail(tape, XG_ERR_ARGUMENT, "optimiser: leaf %d '%.80s' %s", k, xg_name_of(leaf[k]),
                    ours ? "is given twice" : "is not of this store");
            return false;
        }
        if (xg__is_poison(grad[k]) || !xg_shape_same(leaf[k]->shape, grad[k]->shape)) {
            xg_fail(tape, XG_ERR_SHAPE, "optimiser: the gradient of '%.80s' is missing or has "
                    "another shape", params->entry[at].name);
            return false;
        }
        if (!xg_params_trainable(params, at)) continue;
        if (!xg__starts_with(params->entry[at].name, o->only)) continue;
        params->entry[at].chosen = k;
        chosen++;
    }
    return chosen > 0 || xg__optim_idle(tape, o->only);
}

/* Gradients and weights are worked on in blocks, by any worker. */
typedef struct xg__optim_job {
    const xg_optim *o;
    const xg__kernels *kernels;
    xg_params *params;
    xg_tensor *const *grad;
    const xg__rates *rates;
    double *squares;                           /* of each block's gradients, added, or 0 */
    void (*work)(const struct xg__optim_job *job, size_t block, int entry, size_t at, size_t n);
} xg__optim_job;

enum { XG__OPTIM_BLOCK = 16384 };

/* The blocks of entry i; none if it is not to change. */
static size_t xg__optim_blocks(const xg_params *params, int i)
{
    size_t size = xg_shape_size(params->entry[i].shape);
    return params->entry[i].chosen < 0 ? 0 : (size + XG__OPTIM_BLOCK - 1) / XG__OPTIM_BLOCK;
}

/* Only clipping wants the sum; else it is enough to know that all are finite, which is quicker. */
static void xg__square_block(const xg__optim_job *job, size_t block, int i, size_t at, size_t n)
{
    const xg_real *grad = job->grad[job->params->entry[i].chosen]->data + at;
    double lane[16];
    memset(lane, 0, sizeof lane);
    if (job->o->clip_norm > 0) job->kernels->square_lanes(lane, grad, n);
    else lane[0] = job->kernels->check(grad, n);
    job->squares[block] = xg__lanes_sum(lane);
}

/* How many vectors an optimiser remembers for each weight. */
static int xg__optim_slots(const xg_optim *o)
{
    return o->kind != XG_SGD ? 2 : o->momentum > 0 ? 1 : 0;
}

static void xg__update_block(const xg__optim_job *job, size_t block, int i, size_t at, size_t n)
{
    const xg__entry *entry = &job->params->entry[i];
    const int slots = xg__optim_slots(job->o);
    xg_real *state[2] = { NULL, NULL };
    for (int k = 0; k < slots; k++) state[k] = xg__slot_find(entry, job->o->slot, k)->data + at;
    (void)block;
    job->kernels->update[slots](job->rates, entry->data + at,
                                job->grad[entry->chosen]->data + at, state[0], state[1], n);
}

/* Blocks [begin, end), counted through all entries. */
static void xg__optim_range(const void *context, size_t begin, size_t end)
{
    const xg__optim_job *job = (const xg__optim_job *)context;
    size_t first = 0;
    for (int i = 0; i < job->params->count && first < end; i++) {
        size_t blocks = xg__optim_blocks(job->params, i);
        size_t size = xg_shape_size(job->params->entry[i].shape);
        for (size_t b = begin > first ? begin - first : 0; b < blocks && first + b < end; b++) {
            size_t at = b * XG__OPTIM_BLOCK;
            job->work(job, first + b, i, at, xg__min(size - at, XG__OPTIM_BLOCK));
        }
        first += blocks;
    }
}

/* All gradients have numbers; returns how many blocks there are. */
static size_t xg__optim_count(const xg__optim_job *job)
{
    size_t blocks = 0;
    for (int i = 0; i < job->params->count; i++) {
        if (job->params->entry[i].chosen >= 0) xg_data(job->grad[job->params->entry[i].chosen]);
        blocks += xg__optim_blocks(job->params, i);
    }
    return blocks;
}

/* The length of all gradients taken as one vector, or 0 if nothing is clipped; negative after
 * failing the tape because one is not finite. Blocks are added in their order, so the bits do not
 * depend on who summed them. */
static double xg__optim_norm(xg__optim_job *job, xg_tape *tape, size_t blocks)
{
    double total = 0;
    xg_params *params = job->params;
    xg__place place = xg__arena_mark(&tape->arena);
    const double *squares = job->squares = (double *)xg__take(tape, blocks * sizeof *squares);
    if (!squares) return -1;
    job->work = xg__square_block;
    xg__parallel(tape, blocks, XG__OPTIM_BLOCK, xg__optim_range, job);
    for (int i = 0; i < params->count && !xg_failed(tape); i++) {
        for (size_t b = xg__optim_blocks(params, i); b > 0; b--) total += *squares++;
        if (isfinite(total)) continue;
        xg_fail(tape, XG_ERR_NONFINITE, "optimiser: the gradient of '%.80s' is not finite; "
                "nothing was changed", params->entry[i].name);
    }
    xg__arena_release(&tape->arena, place);
    return xg_failed(tape) ? -1 : sqrt(total);
}

/* All state exists before any of it changes; returns the step count, NULL after failing the tape.
 * State made before memory ran out stays, as zeros: the same as none. */
static xg__steps *xg__optim_reserve(const xg_optim *o, xg_params *params, xg_tape *tape)
{
    xg__steps *steps = xg__steps_of(params, o->slot);
    for (int i = 0; i < params->count && steps; i++) {
        xg__entry *entry = &params->entry[i];
        for (int which = 0; which < xg__optim_slots(o) && entry->chosen >= 0; which++) {
            if (!xg__slot_of(params, entry, o->slot, which)) steps = NULL;
        }
    }
    if (!steps) {
        xg_fail(tape, XG_ERR_MEMORY, "optimiser: out of memory for its state; nothing was changed");
    }
    return steps;
}

XG_API_DEF xg_code xg_optim_apply(const xg_optim *o, xg_params *params, xg_tensor *const *leaf,
                                  xg_tensor *const *grad, int count)
{
    xg_tape *tape = count > 0 && leaf && grad ? xg_tape_of(leaf[0]) : NULL;
    if (!params || !tape) {
        xg_fail(tape, XG_ERR_ARGUMENT, "optimiser: there is no store or no gradient");
        return XG_ERR_ARGUMENT;
    }
    if (xg_failed(tape)) return xg_tape_error(tape)->code;
    xg_optim r = xg__optim_defaults(o);
    const char *wrong = xg__optim_wrong(&r);
    if (wrong) {
        xg_fail(tape, XG_ERR_ARGUMENT, "optimiser: %s", wrong);
        return XG_ERR_ARGUMENT;
    }
    if (!xg__optim_match(&r, params, tape, leaf, grad, count)) return xg_tape_error(tape)->code;
    xg__optim_job job = { &r, tape->kernels, params, grad, NULL, NULL, NULL };
    size_t blocks = xg__optim_count(&job);
    double norm = xg_failed(tape) ? -1 : xg__optim_norm(&job, tape, blocks);
    xg__steps *taken = norm < 0 ? NULL : xg__optim_reserve(&r, params, tape);
    if (!taken || !xg__prepare_updates(tape, leaf, count)) return xg_tape_error(tape)->code;

    double scale = r.clip_norm > 0 && norm > r.clip_norm ? r.clip_norm / norm : 1;
    xg__rates rates = xg__rates_of(&r, taken->steps, scale);
    job.rates = &rates;
    job.work = xg__update_block;
    xg__parallel(tape, blocks, XG__OPTIM_BLOCK, xg__optim_range, &job);
    taken->steps++;
    xg__commit_updates(tape);
    return XG_ERR_OK;
}

XG_API_DEF xg_code xg_optim_step(const xg_optim *o, xg_params *params, xg_tensor *loss)
{
    xg_tape *tape = xg_tape_of(loss);
    if (xg_failed(tape)) return xg_tape_error(tape)->code;
    double value = xg_item(loss);
    if (!params) {
        xg_fail(tape, XG_ERR_ARGUMENT, "optimiser: there is no store");
    } else if (xg_size(loss) != 1) {
        xg_fail(tape, XG_ERR_SHAPE, "optimiser: the loss must be one number, it has %.0f",
                (double)xg_size(loss));
    } else if (!isfinite(value)) {
        xg_fail(tape, XG_ERR_NONFINITE, "optimiser: the loss is %g; nothing was changed", value);
    }
    if (xg_failed(tape)) return xg_tape_error(tape)->code;

    const char *only = o ? o->only : NULL;
    int count = xg__params_leaves(params, tape, only, params->leaf, params->count);
    if (count == 0) {
        xg__optim_idle(tape, only);
        return XG_ERR_NAME;
    }
    xg__grads(loss, NULL, params->leaf, count, NULL, params->grad, true);
    return xg_optim_apply(o, params, params->leaf, params->grad, count);
}

/* ============================================================================================== *
 *  [8] attribute                                                                                 *
 * ============================================================================================== */

/* Every map is an expression in public operations: a loss on it is differentiated like any other,
 * and the gradient that reaches the weights through ds/du is exact, to whatever order. Nothing is
 * detached unless a switch says so. */

/* 8.1 Gradient family. A sweep from the score to u leaves its result on the tape, as operations on
 *     activations and weights. A loss on it is differentiated by a second sweep, over the first:
 *     that is the whole of training through explanations. The scores of a batch are
 *     summed first; unless samples meet in batch statistics, each keeps its own gradient. */

/* A map adds up the channels with their signs: [n,c,h,w] -> [n,1,h,w]. */
static xg_tensor *xg__channel_sum(xg_tensor *x)
{
    xg_shape s = xg_shape_of(x);
    return xg_sum_to(x, xg_shape4(s.n, 1, s.h, s.w));
}

/* d sum(score) / du under another rule table. The rules emit ordinary operations too, so even a
 * reading that is no derivative has one. */
static xg_tensor *xg__read_with(xg_tensor *score, xg_tensor *u, xg_rules rules)
{
    xg_tensor *gradient = NULL;
    xg_grads(score, NULL, &u, 1, &rules, &gradient);
    return gradient;
}

/* How much the score would change if a pixel changed: what the network is sensitive to. */
XG_API_DEF xg_tensor *xg_gradient(xg_tensor *score, xg_tensor *u)
{
    return xg__channel_sum(xg_grad(score, u));
}

/* At a hidden layer a loss reaches the weights through both factors: u is not held constant. */
XG_API_DEF xg_tensor *xg_input_x_gradient(xg_tensor *score, xg_tensor *u)
{
    return xg__channel_sum(xg_mul(u, xg_grad(score, u)));
}

/* Only this reading takes the dynamic weights for constants. The result contains them as ordinary
 * tensors, so the derivative of a loss on the map does pass through them. */
XG_API_DEF xg_tensor *xg_bcos_map(xg_tensor *score, xg_tensor *u)
{
    return xg__channel_sum(xg_mul(u, xg__read_with(score, u, xg_rules_explain())));
}

/* Springenberg 2015: a ReLU passes a cotangent where it is positive and the unit was active. */
XG_API_DEF xg_tensor *xg_guided_backprop(xg_tensor *score, xg_tensor *u)
{
    return xg__channel_sum(xg__read_with(score, u, xg_rules_guided()));
}

/* Zeiler 2014: a ReLU passes a cotangent where it is positive, whatever the unit did. */
XG_API_DEF xg_tensor *xg_deconvnet(xg_tensor *score, xg_tensor *u)
{
    return xg__channel_sum(xg__read_with(score, u, xg_rules_deconv()));
}

/* A loss on this map reaches the weights by two ways: through u, and through alpha, a gradient.
 * With pooling and one dense layer behind u, alpha is that layer's weights over h w: the second way
 * is the only one that trains the classifier, and the switch closes it. */
XG_API_DEF xg_tensor *xg_grad_cam(xg_tensor *score, xg_tensor *u, const xg_grad_cam_options *o)
{
    xg_shape s = xg_shape_of(u);
    xg_tensor *alpha = xg_mean_to(xg_grad(score, u), xg_shape4(s.n, s.c, 1, 1));
    if (o && o->stop_gradient_weights) alpha = xg_detach(alpha);
    xg_tensor *map = xg__channel_sum(xg_mul(alpha, u));
    return o && o->keep_negative ? map : xg_relu(map);
}

/* 8.2 Path family.
 *
 * With delta = x - baseline and g(t) = the gradient of the labelled logits at baseline + t delta,
 *     map = 1/S sum_k sum_c delta_c g_c(t_k),   t_k = (k + 1/2) / S.
 * The sum over k is taken a few steps at a time, which pass the network as one batch: pass, add to
 * a leaf, release. Training does not need all steps at once either. Given the cotangent
 * a = d loss / d map, the derivative of the loss by a weight is 1/S sum_k d <a delta, g(t_k)> / d
 * weight: again a pass for a few terms. */

typedef struct xg__path {
    xg_scope  *s;
    xg_net     net;
    const int *label;
    xg_tensor *from;      /* the baseline; NULL stands for zeros                               */
    xg_tensor *delta;     /* x - baseline                                                      */
    int        steps;
    int        together;  /* so many of them pass the network at once                          */
} xg__path;

/* Checks the arguments of both passes and prepares what is the same for all steps. */
static bool xg__path_open(xg__path *p, xg_scope *s, xg_net net, xg_tensor *x, const int *label,
                          const xg_path_options *o)
{
    p->s = s;
    p->net = net;
    p->label = label;
    p->steps = o && o->steps ? o->steps : 32;
    p->together = o && o->batch ? o->batch : 8;
    p->from = o ? o->baseline : NULL;
    p->delta = x;
    if (xg_failed(s->tape)) return false;
    if (!net || !label || p->steps < 1 || p->together < 1) {
        xg_fail(s->tape, XG_ERR_ARGUMENT, "integrated_gradients: needs a network, labels and at "
                "least one step and a batch of 1; got%s%s, %d steps and a batch of %d",
                net ? "" : " no network,", label ? " labels" : " no labels", p->steps,
                p->together);
        return false;
    }
    if (xg_tape_of(x) != s->tape) {
        xg_fail(s->tape, XG_ERR_TAPE, "integrated_gradients: x is not on the scope's tape");
        return false;
    }
    if (p->from) p->delta = xg_sub(x, p->from);      /* also refuses what does not fit         */
    xg_shape a = xg_shape_of(x), b = xg_shape_of(p->delta);
    if (!xg_failed(s->tape) && !xg_shape_same(a, b)) {
        xg_fail(s->tape, XG_ERR_SHAPE, "integrated_gradients: a baseline cannot be larger than x "
                "[%d %d %d %d]; together they span [%d %d %d %d]",
                a.n, a.c, a.h, a.w, b.n, b.c, b.h, b.w);
    }
    if (xg_failed(s->tape)) return false;
    p->together /= a.n;
    if (s->train || p->together < 1) p->together = 1;
    return true;
}

/* So many batches x as one of so many samples, all of a batch's channels in each. One picture is
 * that already, and stays as it is: then the sum of slopes is seen for what it is (5.3). */
static xg_tensor *xg__as_samples(xg_tensor *x, int count)
{
    const xg_shape s = xg_shape_of(x);
    if (s.n == count) return x;
    const size_t channels = xg__times((size_t)(s.n / count), (size_t)s.c);
    return xg_reshape(x, xg_shape4(count, (int)xg__min(channels, INT_MAX), s.h, s.w));
}

/* The points of `count` steps, one batch after the other; constants, whatever x was made from. */
static xg_tensor *xg__path_points(const xg__path *p, int step, int count)
{
    xg_shape s = xg_shape_of(p->delta);
    xg_tensor *t = xg_leaf(p->s->tape, xg_shape4(count, 1, 1, 1), NULL);
    xg_real *to = xg_leaf_data(t);
    for (int i = 0; to && i < count; i++) to[i] = (xg_real)((step + i + 0.5) / p->steps);
    xg_tensor *point = xg_mul(t, xg__as_samples(p->delta, 1));
    if (p->from) point = xg_add(xg__as_samples(xg_expand(p->from, s), 1), point);
    s.n *= count;
    return xg_detach(xg_reshape(point, s));
}

/* The labels of so many steps; NULL with the tape's error. */
static int *xg__path_labels(const xg__path *p, int count)
{
    const int n = xg_shape_of(p->delta).n;
    int *label = (int *)xg__take(p->s->tape, (size_t)(count * n) * sizeof *label);
    for (int i = 0; label && i < count * n; i++) label[i] = p->label[i % n];
    return label;
}

/* The sum of g(t) over the steps of a pass, from `step` on. Each pass starts from the same random
 * state: with dropout the path then belongs to one network, and the second sweep meets the same
 * masks as the first. Only the drawing of first weights moves the caller's generator. */
static xg_tensor *xg__path_gradient(const xg__path *p, int step)
{
    const xg_shape shape = xg_shape_of(p->delta);
    const int left = p->steps - step, count = left < p->together ? left : p->together;
    const int *label = xg__path_labels(p, count);
    if (!label) return xg__poison(p->s->tape);
    xg_tensor *points = xg__path_points(p, step, count);

    xg_scope here = *p->s;
    xg_rng rng = here.rng ? *here.rng : xg_rng_seed(0);
    if (here.rng) here.rng = &rng;
    int known = xg_params_count(here.params);
    xg_tensor *score = xg_pick(p->net(&here, points), label);
    if (here.rng && xg_params_count(here.params) != known) *p->s->rng = rng;

    xg_tensor *slope = xg__as_samples(xg_grad(score, points), count);
    xg_shape one = xg_shape_of(slope);
    one.n = 1;
    return xg_reshape(xg_sum_to(slope, one), shape);
}

/* sum += scale * part, in place: `sum` is a leaf that was made before the step's mark. */
static void xg__accumulate(xg_tensor *sum, xg_tensor *part, double scale)
{
    const xg_real *from = xg_data(part);
    xg_real *to = xg_leaf_data(sum);
    if (!to) return;                                 /* the tape failed on the way             */
    for (size_t i = 0, size = xg_size(sum); i < size; i++) {
        to[i] = (xg_real)((double)to[i] + scale * (double)from[i]);
    }
}

/* What must outlive the passes (delta, the map) is made before the first mark; what a pass makes,
 * the network's activations and its sweep, is gone before the next one starts. So the peak of 512
 * steps is the peak of a few. The map is a leaf: it knows nothing of the network that made it. */
XG_API_DEF xg_tensor *xg_integrated_gradients(xg_scope *s, xg_net net, xg_tensor *x,
                                              const int *label, const xg_path_options *o)
{
    xg__path path;
    if (!xg__path_open(&path, s, net, x, label, o)) return xg__poison(s->tape);
    xg_shape shape = xg_shape_of(x);
    shape.c = 1;
    xg_tensor *map = xg_leaf(s->tape, shape, NULL);
    for (int step = 0; step < path.steps && !xg_failed(s->tape); step += path.together) {
        xg_mark mark = xg_tape_mark(s->tape);
        xg_tensor *gradient = xg__path_gradient(&path, step);
        xg__accumulate(map, xg__channel_sum(xg_mul(path.delta, gradient)), 1.0 / path.steps);
        xg_tape_release(s->tape, mark);
    }
    return xg_failed(s->tape) ? xg__poison(s->tape) : map;
}

/* The leaves that the network of this pass reads. A weight that was on the tape before the mark is
 * used again; one that first came up within the pass has a new leaf each time, of the same name. */
static void xg__leaves_here(const xg_scope *s, xg_tensor *const *leaf, int count, xg_tensor **here)
{
    for (int i = 0; i < count; i++) {
        xg_tensor *found = xg__find_owned(s->tape, s->params, xg_name_of(leaf[i]));
        here[i] = found ? found : leaf[i];
    }
}

/* A pass of the second sweep: adds d <seed, g> / d leaf[i] to out[i], g the sum above. `room` holds
 * 2 count. */
static void xg__path_pull(const xg__path *p, int step, xg_tensor *seed, xg_tensor *const *leaf,
                          int count, xg_tensor **room, xg_tensor **out)
{
    xg_tensor **here = room, **part = room + count;
    xg_mark mark = xg_tape_mark(p->s->tape);
    xg_tensor *gradient = xg__path_gradient(p, step);
    xg__leaves_here(p->s, leaf, count, here);
    xg_grads(gradient, seed, here, count, NULL, part);
    for (int i = 0; i < count && !xg_failed(p->s->tape); i++) xg__accumulate(out[i], part[i], 1.0);
    xg_tape_release(p->s->tape, mark);
}

/* The first pass kept no graph, so the chain rule is cut in two at the map: the caller brings the
 * cotangent a, taken on the leaf, and the steps are visited again for the other factor. Neither a
 * nor delta changes from step to step, hence one seed, a delta / S, serves them all. */
XG_API_DEF void xg_integrated_gradients_vjp(xg_scope *s, xg_net net, xg_tensor *x, const int *label,
                                            const xg_path_options *o, xg_tensor *cotangent,
                                            xg_tensor *const *leaf, int count, xg_tensor **out)
{
    xg__path path;
    bool good = xg__path_open(&path, s, net, x, label, o);
    xg_shape a = xg_shape_of(cotangent), b = xg_shape_of(x);
    if (good && (a.n != b.n || a.c != 1 || a.h != b.h || a.w != b.w)) {
        xg_fail(s->tape, XG_ERR_SHAPE, "integrated_gradients_vjp: the cotangent [%d %d %d %d] is "
                "not shaped like the map of x [%d %d %d %d]",
                a.n, a.c, a.h, a.w, b.n, b.c, b.h, b.w);
    }
    for (int i = 0; i < count; i++) out[i] = xg_leaf(s->tape, xg_shape_of(leaf[i]), NULL);
    if (xg_failed(s->tape) || count < 1) return;

    xg_tensor *seed = xg_mul(xg_affine(cotangent, 1.0 / path.steps, 0.0), path.delta);
    xg_tensor **room = (xg_tensor **)xg__take(s->tape, 2 * (size_t)count * sizeof *room);
    for (int step = 0; step < path.steps && !xg_failed(s->tape); step += path.together) {
        xg__path_pull(&path, step, seed, leaf, count, room, out);
    }
    if (!xg_failed(s->tape)) return;
    for (int i = 0; i < count; i++) out[i] = xg__poison(s->tape);    /* nothing half-summed    */
}

/* 8.3 Post-processing (Rao 2023, released code). The maximum is taken at the resolution of the
 *     layer: bilinear interpolation then lies within it, and may stay below it everywhere. */

/* max(A, 0) as a clamp: its derivative at exactly 0 is 1, where that of a ReLU is 0, so that a map
 * which is zero somewhere can still grow there. The published losses count on it. */
static xg_tensor *xg__positive(xg_tensor *map)
{
    return xg_clamp(map, 0.0, HUGE_VAL);
}

/* A / max|A| of each sample. The maximum is part of the expression (ties share its gradient); a
 * sample of zeros is divided by 1, so it stays and its gradient passes unchanged. */
static xg_tensor *xg__over_peak(xg_tensor *map)
{
    xg_tensor *peak = xg_max_to(xg_abs(map), xg_shape4(xg_shape_of(map).n, 1, 1, 1));
    xg_tensor *all_zero = xg_affine(xg_step(peak), -1.0, 1.0);       /* 1 - [peak > 0]         */
    return xg_div(map, xg_add(peak, all_zero));
}

XG_API_DEF xg_tensor *xg_postprocess(xg_tensor *map, const xg_post *o)
{
    xg_tape *tape = xg_tape_of(map);
    xg_shape s = xg_shape_of(map);
    if (xg_failed(tape)) return xg__poison(tape);
    if (!o) return map;
    if (s.c != 1) {
        xg_fail(tape, XG_ERR_SHAPE, "postprocess: a map has one channel, this one is [%d %d %d %d]",
                s.n, s.c, s.h, s.w);
    } else if (o->h < 0 || o->w < 0 || (o->h > 0) != (o->w > 0)) {
        xg_fail(tape, XG_ERR_ARGUMENT, "postprocess: up-sampling wants two extents of at least 1, "
                "or none; got h = %d, w = %d", o->h, o->w);
    }
    if (xg_failed(tape)) return xg__poison(tape);
    if (o->positive) map = xg__positive(map);
    if (o->normalise) map = xg__over_peak(map);
    if (o->h > 0 && (o->h != s.h || o->w != s.w)) map = xg_upsample(map, o->h, o->w);
    return map;
}

/* ============================================================================================== *
 *  [9] guide                                                                                     *
 * ============================================================================================== */

/* 9.1 Localisation losses (Rao et al. 2023, eq. 3-6): their post-processing, ... */

/* Energy is a quotient and needs no scale; it clamps by itself, after up-sampling. The others
 * compare a map with 0 and 1, and RRR* the sizes of both signs. */
XG_API_DEF xg_post xg_loss_post(xg_loss loss)
{
    xg_post post = XG__ZEROS;
    post.positive = loss == XG_LOSS_L1 || loss == XG_LOSS_PPCE;
    post.normalise = post.positive || loss == XG_LOSS_RRR;
    return post;
}

/* ... what they say of each sample (Rao 2023, eq. 3-6): map and mask [n,1,h,w] in, [n,1,1,1]
 * out. Where a division or a logarithm has no value, a selector puts 1 in its place; selectors
 * are constants to every derivative, so no branch that was not taken can leak a NaN. */

/* Everything of a sample added up. */
static xg_tensor *xg__per_sample(xg_tensor *x)
{
    return xg_sum_to(x, xg_shape4(xg_shape_of(x).n, 1, 1, 1));
}

/* x where choose is 0, and 1 where it is 1. */
static xg_tensor *xg__or_one(xg_tensor *x, xg_tensor *choose)
{
    return xg_add(xg_mul(x, xg_affine(choose, -1.0, 1.0)), choose);
}

/* 1 - N/D, N = sum M A+, D = sum A+. Gradient by A: -[A >= 0] (M D - N) / D^2. It is orthogonal to
 * A+: the loss asks where the energy is, not how much there is, and inside the mask it leaves the
 * network free to choose. Where there is too little to divide by (D < 1e-7, decided sample by
 * sample) it is 1 - N, whose gradient -M still pulls energy into the mask. */
static xg_tensor *xg__loss_energy(xg_tensor *map, xg_tensor *mask)
{
    xg_tensor *energy = xg__positive(map);
    xg_tensor *all = xg__per_sample(energy);
    xg_tensor *inside = xg__per_sample(xg_mul(mask, energy));
    xg_tensor *faint = xg_less(all, xg_scalar(xg_tape_of(map), 1e-7));
    return xg_affine(xg_div(inside, xg__or_one(all, faint)), -1.0, 1.0);
}

/* mean |M - A|: asks for a map that fills the mask evenly and is nowhere else. A pixel that agrees
 * with the mask exactly, as the brightest one inside always does, gets gradient 0. */
static xg_tensor *xg__loss_l1(xg_tensor *map, xg_tensor *mask)
{
    return xg_mean_to(xg_abs(xg_sub(mask, map)), xg_shape4(xg_shape_of(map).n, 1, 1, 1));
}

/* Below this the logarithm is cut off: e^-100, or the smallest float whose reciprocal is finite. */
static double xg__log_floor(void)
{
    return sizeof(xg_real) == sizeof(double) ? exp(-100.0) : 1.2e-38;
}

/* -sum M log A / sum M. Gradient by A: -M / (A sum M) for 0 < A < 1, and
 *     at A = 1 and above   0, value 0: the published code is a cross-entropy, which is flat there
 *     at A = 0 and below   0, value 100: the floor is a constant. (The published code divides by
 *                          1e-12 instead and gets -1e12, which no optimiser survives.)
 * An empty mask gives 0 here; xg_guide does not count such a sample at all. */
static xg_tensor *xg__loss_ppce(xg_tensor *map, xg_tensor *mask)
{
    xg_tape *tape = xg_tape_of(map);
    xg_tensor *lit = xg_less(xg_scalar(tape, xg__log_floor()), map);
    xg_tensor *live = xg_mul(lit, xg_less(map, xg_scalar(tape, 1.0)));
    xg_tensor *value = xg__or_one(map, xg_affine(live, -1.0, 1.0));
    xg_tensor *cost = xg_sub(xg_affine(lit, -100.0, 100.0), xg_log(value));
    xg_tensor *area = xg__per_sample(mask);
    xg_tensor *empty = xg_affine(xg_step(area), -1.0, 1.0);
    return xg_div(xg__per_sample(xg_mul(mask, cost)), xg__or_one(area, empty));
}

/* sum (1 - M) A^2: punishes what is outside, of either sign, and asks for nothing inside. A sum
 * over pixels, not a mean, so its lambda is orders of magnitude below those of the others. */
static xg_tensor *xg__loss_rrr(xg_tensor *map, xg_tensor *mask)
{
    return xg__per_sample(xg_mul(xg_affine(mask, -1.0, 1.0), xg_square(map)));
}

/* By xg_loss. */
static const struct {
    const char *name;
    xg_tensor *(*each)(xg_tensor *map, xg_tensor *mask);
} xg__losses[] = {
    { "energy", xg__loss_energy }, { "l1", xg__loss_l1 },
    { "ppce", xg__loss_ppce },     { "rrr", xg__loss_rrr }
};

XG_API_DEF const char *xg_loss_name(xg_loss loss)
{
    return (unsigned)loss <= XG_LOSS_RRR ? xg__losses[loss].name : "unknown";
}

/* ... and how samples become a number. */

/* Whether map, mask and options belong together. A map that is finer than its mask is refused:
 * bilinear shrinking would skip pixels, and what is skipped is never guided. */
static bool xg__guide_fits(xg_tensor *map, xg_tensor *mask, const xg_guide_options *o)
{
    xg_tape *tape = xg_tape_of(map);
    xg_shape a = xg_shape_of(map), b = xg_shape_of(mask);
    if (xg_failed(tape)) return false;
    if (xg_tape_of(mask) != tape) {
        xg_fail(tape, XG_ERR_TAPE, "guide: map and mask live on different tapes");
    } else if ((int)o->loss < 0 || (int)o->loss > (int)XG_LOSS_RRR) {
        xg_fail(tape, XG_ERR_ARGUMENT, "guide: there is no loss number %d", (int)o->loss);
    } else if (a.n != b.n || a.c != 1 || b.c != 1) {
        xg_fail(tape, XG_ERR_SHAPE, "guide: map and mask want one channel and the same samples, "
                "got map [%d %d %d %d], mask [%d %d %d %d]",
                a.n, a.c, a.h, a.w, b.n, b.c, b.h, b.w);
    } else if (o->raw ? a.h != b.h || a.w != b.w : a.h > b.h || a.w > b.w) {
        xg_fail(tape, XG_ERR_SHAPE, "guide: the mask must have %s, got map [%d %d %d %d], mask "
                "[%d %d %d %d]", o->raw ? "the size of a raw map" : "at least the size of the map",
                a.n, a.c, a.h, a.w, b.n, b.c, b.h, b.w);
    }
    return !xg_failed(tape);
}

/* The sum of a mask; -1 if a value is below 0 or above 1, NaN if one is NaN. */
static double xg__mask_area(const xg_real *mask, size_t count)
{
    double area = 0.0;
    bool outside = false;
    for (size_t i = 0; i < count; i++) {
        outside |= mask[i] < 0 || mask[i] > 1;
        area += (double)mask[i];
    }
    return outside ? -1.0 : area;
}

/* Whether weights and masks are sound; the sentence names the first sample that is not. */
static bool xg__sample_sound(xg_tape *tape, int sample, double area, double weight)
{
    if (isnan(area) || isnan(weight) || isinf(weight)) {
        xg_fail(tape, XG_ERR_NONFINITE, "guide: the %s of sample %d is not finite",
                isnan(area) ? "mask" : "weight", sample);
    } else if (area < 0.0 || weight < 0.0) {
        xg_fail(tape, XG_ERR_ARGUMENT, area < 0.0
                ? "guide: the mask of sample %d has values outside [0, 1]"
                : "guide: the weight of sample %d is negative", sample);
    }
    return !xg_failed(tape);
}

/* How much each sample counts, [n,1,1,1], and how many count at all. PPCE does not count samples
 * with an empty mask. Reading all masks costs one pass over them and catches those of 0 and 255. */
static xg_tensor *xg__sample_weights(xg_tensor *mask, const xg_guide_options *o, int *counting)
{
    xg_tape *tape = xg_tape_of(mask);
    xg_shape s = xg_shape_of(mask);
    size_t plane = (size_t)s.h * (size_t)s.w;
    xg_tensor *weights = xg_leaf(tape, xg_shape4(s.n, 1, 1, 1), NULL);
    const xg_real *m = xg_data(mask);
    xg_real *w = xg_leaf_data(weights);
    *counting = 0;
    for (int i = 0; w && i < s.n; i++) {
        double area = xg__mask_area(m + (size_t)i * plane, plane);
        double weight = o->weight ? (double)o->weight[i] : 1.0;
        if (!xg__sample_sound(tape, i, area, weight)) break;
        if (o->loss == XG_LOSS_PPCE && area <= 0.0) weight = 0.0;
        w[i] = (xg_real)weight;
        *counting += weight > 0.0;
    }
    return xg_failed(tape) ? xg__poison(tape) : weights;
}

/* Samples that do not count are taken out of the map itself, not only out of the sum: whatever
 * stands there, infinities included, adds exactly 0 to the loss and gets exactly 0 as gradient. */
XG_API_DEF xg_tensor *xg_guide(xg_tensor *map, xg_tensor *mask, const xg_guide_options *o)
{
    xg_guide_options chosen = XG__ZEROS;
    if (o) chosen = *o;
    if (!xg__guide_fits(map, mask, &chosen)) return xg__poison(xg_tape_of(map));
    int counting = 0;
    xg_tensor *weights = xg__sample_weights(mask, &chosen, &counting);
    if (counting < xg_shape_of(map).n) map = xg_gate(map, weights);
    if (!chosen.raw) {
        xg_post post = xg_loss_post(chosen.loss);
        post.h = xg_shape_of(mask).h;
        post.w = xg_shape_of(mask).w;
        map = xg_postprocess(map, &post);
    }
    xg_tensor *total = xg_dot(xg__losses[chosen.loss].each(map, mask), weights);
    if (!chosen.mean) return total;
    return xg_affine(total, 1.0 / (counting > 0 ? counting : 1), 0.0);
}

/* 9.2 Masks from boxes (Rao 2023, released code). */

/* One edge: scaled, clipped to [0, size-1], truncated. Multiplying first keeps whole results whole:
 * 180 of 640 is pixel 63 of 224, not the one before it. */
static double xg__box_edge(double edge, double extent, int size)
{
    return floor(fmin(fmax(edge * size / extent, 0.0), (double)(size - 1)));
}

/* One axis of a box, as pixels begin <= p < end; begin = end where nothing is left to dilate. */
static void xg__box_axis(double low, double high, double extent, int size, double dilation,
                         int *begin, int *end)
{
    double last = size - 1;
    double a = xg__box_edge(low, extent, size);
    double b = xg__box_edge(high, extent, size);
    *begin = *end = 0;
    if (b <= a) return;
    double grow = dilation > 0.0 ? floor(fmin(dilation * (b - a), last)) : 0.0;
    *begin = (int)fmax(a - grow, 0.0);
    *end = (int)fmin(b + grow, last);
}

/* An infinite picture needs no check of its own: every edge lands on 0. */
static bool xg__box_usable(xg_box box, double width, double height)
{
    return isfinite(box.x0) && isfinite(box.y0) && isfinite(box.x1) && isfinite(box.y1)
        && width > 0.0 && height > 0.0;
}

/* The last row and the last column belong to no box: clipped to size-1, upper edge exclusive. A
 * box thinner than a pixel of the mask leaves nothing, dilated or not; nor one inside out. */
XG_API_DEF void xg_mask_box(xg_real *mask, int h, int w, xg_box box, double width, double height,
                            double dilation)
{
    int x0, x1, y0, y1;
    if (!mask || h < 1 || w < 1 || !xg__box_usable(box, width, height)) return;
    xg__box_axis(box.x0, box.x1, width, w, dilation, &x0, &x1);
    xg__box_axis(box.y0, box.y1, height, h, dilation, &y0, &y1);
    for (int y = y0; y < y1; y++) {
        for (int x = x0; x < x1; x++) mask[(size_t)y * (size_t)w + (size_t)x] = 1;
    }
}

/* ============================================================================================== *
 *  [10] measure                                                                                  *
 * ============================================================================================== */

/* Everything here computes in double on plain arrays. A NaN or an infinity in a map makes its score
 * NaN: a broken explanation must not pass for one that points nowhere. */

/* 10.1 Localisation (Rao 2023, 3.4). */

/* A+ of one pixel; the comparison lets NaN through. */
static double xg__above_zero(xg_real a)
{
    return a < 0 ? 0.0 : (double)a;
}

/* The energy-based pointing game: which share of the positive energy lies inside. Also 1 less the
 * Energy loss, but for faint maps: those point nowhere and score 0. */
XG_API_DEF double xg_epg(const xg_real *map, const xg_real *mask, size_t count)
{
    double all = 0.0, inside = 0.0;
    for (size_t i = 0; i < count; i++) {
        double a = xg__above_zero(map[i]);
        all += a;
        inside += (double)mask[i] * a;
    }
    return all < 1e-7 ? 0.0 : inside / all;
}

/* The range of A+; false if it is not finite. */
static bool xg__positive_range(const xg_real *map, size_t count, double *least, double *most)
{
    *least = count ? xg__above_zero(map[0]) : 0.0;
    *most = *least;
    for (size_t i = 0; i < count; i++) {
        double a = xg__above_zero(map[i]);
        if (!isfinite(a)) return false;
        if (a < *least) *least = a;
        if (a > *most) *most = a;
    }
    return true;
}

/* Unlike EPG, this asks for the mask's shape: a map of one bright pixel inside has the best EPG and
 * next to no IoU. The threshold is to be chosen on held-out data; the released code takes 0.5.
 *
 * A flat map has no range to stretch: it is divided by its maximum and so lies everywhere at 1, or
 * at 0 when it is all zero. The same when the range is below 1e-7, the published threshold. */
XG_API_DEF double xg_iou(const xg_real *map, const xg_real *mask, size_t count, double threshold)
{
    double least, most;
    if (!xg__positive_range(map, count, &least, &most)) return (double)NAN;
    bool stretch = most - least >= 1e-7;
    double offset = stretch ? least : 0.0;
    double range = stretch ? most - least : most > 0.0 ? most : 1.0;
    size_t both = 0, either = 0;
    for (size_t i = 0; i < count; i++) {
        bool shown = (xg__above_zero(map[i]) - offset) / range > threshold;
        bool wanted = (double)mask[i] > 0.5;
        both += shown && wanted;
        either += shown || wanted;
    }
    return either ? (double)both / (double)either : 0.0;
}

/* 10.2 Accuracy. */

/* Whether `label` is the first best of a row; a row with a NaN is never right. */
static bool xg__first_best(const xg_real *row, int label, int classes)
{
    if (label < 0 || label >= classes) return false;
    for (int k = 0; k < classes; k++) {
        bool fits = k < label ? row[k] < row[label] : row[k] <= row[label];
        if (!fits) return false;
    }
    return true;
}

/* The share of samples whose label is the first best class; NaN when there are no samples. */
XG_API_DEF double xg_accuracy(const xg_real *logits, const int *label, int n, int classes)
{
    int right = 0;
    for (int i = 0; i < n; i++) {
        right += xg__first_best(logits + (size_t)i * (size_t)classes, label[i], classes);
    }
    return n > 0 ? (double)right / n : (double)NAN;
}

/* By group. Groups nobody belongs to count nowhere; without any sample everything is NaN. */

enum { XG__GROUPS = 64 };      /* as many as struct xg_groups has places                          */

/* The memory is the caller's, so nothing can fail: what has no place is ignored. */
XG_API_DEF void xg_groups_add(xg_groups *g, int group, bool right)
{
    if (group < 0 || group >= XG__GROUPS) return;
    if (group >= g->count) g->count = group + 1;
    g->seen[group]++;
    g->right[group] += right ? 1 : 0;
}

/* NaN says that there is no such sample, where 0 would say that all are wrong. */
XG_API_DEF double xg_groups_accuracy(const xg_groups *g, int group)
{
    if (group < 0 || group >= XG__GROUPS || g->seen[group] < 1) return (double)NAN;
    return (double)g->right[group] / (double)g->seen[group];
}

/* Each sample counts the same: large groups decide. */
XG_API_DEF double xg_groups_overall(const xg_groups *g)
{
    int64_t seen = 0, right = 0;
    for (int i = 0; i < XG__GROUPS; i++) {
        seen += g->seen[i];
        right += g->right[i];
    }
    return seen > 0 ? (double)right / (double)seen : (double)NAN;
}

/* Each group counts the same, however small it is. */
XG_API_DEF double xg_groups_mean(const xg_groups *g)
{
    double sum = 0.0;
    int groups = 0;
    for (int i = 0; i < XG__GROUPS; i++) {
        if (g->seen[i] < 1) continue;
        sum += xg_groups_accuracy(g, i);
        groups++;
    }
    return groups ? sum / groups : (double)NAN;
}

/* What shortcuts cost: a classifier of backgrounds is right on average and wrong in some group. */
XG_API_DEF double xg_groups_worst(const xg_groups *g)
{
    double worst = (double)NAN;
    for (int i = 0; i < XG__GROUPS; i++) {
        double here = xg_groups_accuracy(g, i);
        if (isnan(worst) || here < worst) worst = here;    /* false for an empty group's NaN     */
    }
    return worst;
}

/* Multi-label F1. A target above one half is a positive; a NaN logit is none. */
XG_API_DEF void xg_f1_add(xg_f1 *f, const xg_real *logits, const xg_real *target, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        bool said = logits[i] >= 0, is = (double)target[i] > 0.5;
        f->tp += said && is;
        f->fp += said && !is;
        f->fn += !said && is;
    }
}

/* The harmonic mean of precision and recall over all decisions together. */
XG_API_DEF double xg_f1_value(const xg_f1 *f)
{
    int64_t all = 2 * f->tp + f->fp + f->fn;
    return all > 0 ? 2.0 * (double)f->tp / (double)all : 0.0;
}

/* ============================================================================================== *
 *  [11] files                                                                                    *
 * ============================================================================================== */

/* Two formats, both a short text in front of plain numbers:
 *
 *     npy           "\x93NUMPY" | version, 2 bytes | length, 2 or 4 bytes | a Python dict | numbers
 *     safetensors   length of the header, 8 bytes | a JSON object | the numbers of all tensors
 *
 * Everything in a file is suspect. Sizes are checked before memory is asked for, ranges before they
 * are read, and all of a file before anything in a store changes. Numbers are taken apart byte by
 * byte, so neither alignment nor the byte order of the machine matters.
 *
 * This section reads the entries, slots and step counts of the store in [7] and adds to it with
 * xg_params_add, xg__slot_of and xg__steps_of, which copy the names they are given. */

/* 11.0 Bytes. */

/* Memory for the length of one call. It cannot come from the end at which the arena grows, where
 * entries of the store may be added meanwhile: a fixed buffer lends its far end, any other arena
 * its allocator. What was lent last is given back first. */
typedef struct xg__loan { void *memory; size_t bytes; } xg__loan;

static xg__loan xg__borrow(xg__arena *a, uint64_t bytes)
{
    xg__loan loan = { NULL, 0 };
    if (bytes > SIZE_MAX / 2) return loan;
    loan.bytes = xg__round_up(xg__max((size_t)bytes, 1));
    if (!a->fixed) {
        loan.memory = a->alloc(a->user, loan.bytes);
    } else if (a->first && a->first->bytes - (a->current ? a->used : 0) >= loan.bytes) {
        a->first->bytes -= loan.bytes;
        loan.memory = xg__chunk_pieces(a->first) + a->first->bytes;
    }
    return loan;
}

static void xg__give_back(xg__arena *a, xg__loan loan)
{
    if (!loan.memory) return;
    if (a->fixed) a->first->bytes += loan.bytes;
    else a->release(a->user, loan.memory);
}

/* Where bytes come from: memory, or an open file. How many are left is known from the start for
 * both, so a header that promises more is caught before anything is allocated for it. */
typedef struct xg__source {
    const unsigned char *at;
    uint64_t left;
#ifndef XG_NO_STDIO
    FILE *file;                            /* NULL: memory                                        */
#endif
} xg__source;

/* Bytes in memory; none when the pointer is NULL, whatever the count says. */
static xg__source xg__source_memory(const void *bytes, size_t count)
{
    xg__source s = XG__ZEROS;
    s.at = (const unsigned char *)bytes;
    s.left = bytes ? count : 0;
    return s;
}

/* The next `count` bytes. False: there are not so many, or the disk failed. */
static bool xg__source_read(xg__source *s, void *out, size_t count)
{
    if (count > s->left) return false;
    s->left -= count;
#ifndef XG_NO_STDIO
    if (s->file) return fread(out, 1, count, s->file) == count;
#endif
    if (count > 0) memcpy(out, s->at, count);
    s->at += count;
    return true;
}

#ifndef XG_NO_STDIO
/* Opens a file and finds its size. Folders open well on some systems, but cannot be read. */
static xg__source xg__source_open(const char *path, xg_error *error)
{
    xg__source s = xg__source_memory(NULL, 0);
    if (!path) {
        xg__complain(error, XG_ERR_ARGUMENT, "no path was given");
        return s;
    }
    s.file = fopen(path, "rb");
    if (!s.file) {
        xg__complain(error, XG_ERR_IO, "it cannot be opened");
        return s;
    }
    bool readable = fgetc(s.file) != EOF || !ferror(s.file);
    long size = readable && fseek(s.file, 0, SEEK_END) == 0 ? ftell(s.file) : -1;
    if (size < 0 || fseek(s.file, 0, SEEK_SET) != 0) {
        xg__complain(error, XG_ERR_IO, "it cannot be read, or is no file");
    } else {
        s.left = (uint64_t)size;
    }
    return s;
}

static void xg__source_close(xg__source *s)
{
    if (s->file) fclose(s->file);
    s->file = NULL;
}
#endif

/* A cursor over a header that cannot leave it. After a failure it stands at the end, where all that
 * follows fails too, and the first sentence stays: parsers need not check every step. */
typedef struct xg__cursor {
    const unsigned char *start, *at, *end;
    xg_error *error;
} xg__cursor;

/* The offset tells people who write files by hand, or by program, where to look. */
static void xg__cursor_fail(xg__cursor *c, xg_code code, const char *what)
{
    xg__complain(c->error, code, "byte %lu of the header: %s",
                 (unsigned long)(c->at - c->start), what);
    c->at = c->end;
}

static bool xg__cursor_failed(const xg__cursor *c) { return c->error->code != XG_ERR_OK; }

/* The next character that is not white space, or -1 at the end. */
static int xg__cursor_peek(xg__cursor *c)
{
    while (c->at < c->end && memchr(" \t\n\r", *c->at, 4)) c->at++;
    return c->at < c->end ? *c->at : -1;
}

/* Steps over a character if it comes next ... */
static bool xg__cursor_accept(xg__cursor *c, char wanted)
{
    if (xg__cursor_peek(c) != wanted) return false;
    c->at++;
    return true;
}

/* ... and fails if a character that must come does not. */
static void xg__cursor_expect(xg__cursor *c, char wanted)
{
    char what[] = "expected ?";
    what[9] = wanted;
    if (!xg__cursor_accept(c, wanted)) xg__cursor_fail(c, XG_ERR_FORMAT, what);
}

/* A whole number as JSON and Python write it: digits only, no sign, no zero in front. */
static uint64_t xg__cursor_number(xg__cursor *c)
{
    uint64_t value = 0;
    const int first = xg__cursor_peek(c);
    const unsigned char *start = c->at;
    for (; c->at < c->end && *c->at >= '0' && *c->at <= '9'; c->at++) {
        const uint64_t digit = (uint64_t)(*c->at - '0');
        if (value > (UINT64_MAX - digit) / 10) {
            xg__cursor_fail(c, XG_ERR_FORMAT, "the number is too large");
            return 0;
        }
        value = value * 10 + digit;
    }
    if (c->at == start) xg__cursor_fail(c, XG_ERR_FORMAT, "expected a whole number");
    else if (first == '0' && c->at > start + 1)
        xg__cursor_fail(c, XG_ERR_FORMAT, "a number starts with 0");
    return value;
}

/* 11.0 Numbers. A type of number is a function from bits to a value: bits are put together from
 *      bytes, which fixes the byte order, and reinterpreted as unsigned, float or double. */

/* An unsigned integer of `size` bytes, wherever it stands. */
static uint64_t xg__load_bits(const unsigned char *bytes, size_t size, bool big_endian)
{
    uint64_t bits = 0;
    for (size_t i = 0; i < size; i++) bits = bits << 8 | bytes[big_endian ? i : size - 1 - i];
    return bits;
}

static xg_real xg__from_f64(uint64_t bits)
{
    double x;
    memcpy(&x, &bits, sizeof x);
    return (xg_real)x;
}

static xg_real xg__from_f32(uint64_t bits)
{
    const uint32_t low = (uint32_t)bits;
    float x;
    memcpy(&x, &low, sizeof x);
    return (xg_real)x;
}

/* bfloat16 is the upper half of a float. */
static xg_real xg__from_bf16(uint64_t bits) { return xg__from_f32(bits << 16); }

/* Half precision: a sign, 5 bits of exponent with bias 15, 10 bits of mantissa. A float has 8 bits
 * with bias 127, and 23: the mantissa moves 13 bits up, the exponent gains 112. */
static xg_real xg__from_f16(uint64_t bits)
{
    const uint64_t sign = (bits & 0x8000) << 16, mantissa = bits & 1023;
    const uint64_t exponent = (bits >> 10) & 31;
    const xg_real tiny = (xg_real)mantissa / (xg_real)16777216;    /* subnormal: mantissa / 2^24  */
    if (exponent == 0) return sign ? -tiny : tiny;
    if (exponent == 31) return xg__from_f32(sign | 0x7f800000 | mantissa << 13);
    return xg__from_f32(sign | (exponent + 112) << 23 | mantissa << 13);
}

/* Two's complement of `width` bits, written so that no cast depends on the compiler. */
static xg_real xg__from_signed(uint64_t bits, int width)
{
    const uint64_t sign = (uint64_t)1 << (width - 1);
    if (!(bits & sign)) return (xg_real)bits;
    return -(xg_real)((~bits & (sign - 1)) + 1);
}

static xg_real xg__from_i64(uint64_t bits)  { return xg__from_signed(bits, 64); }
static xg_real xg__from_i32(uint64_t bits)  { return xg__from_signed(bits, 32); }
static xg_real xg__from_i16(uint64_t bits)  { return xg__from_signed(bits, 16); }
static xg_real xg__from_i8(uint64_t bits)   { return xg__from_signed(bits, 8); }
static xg_real xg__from_u8(uint64_t bits)   { return (xg_real)bits; }
static xg_real xg__from_bool(uint64_t bits) { return (xg_real)(bits != 0); }

/* What a number is called in either format, its size, and its value from its bits. */
typedef struct xg__dtype {
    char     safetensors[8], npy[4];
    size_t   size;
    xg_real (*value)(uint64_t bits);
} xg__dtype;

static const xg__dtype xg__dtypes[] = {
    { "F64", "f8", 8, xg__from_f64 }, { "F32",  "f4", 4, xg__from_f32 },
    { "F16", "f2", 2, xg__from_f16 }, { "BF16", "",   2, xg__from_bf16 },
    { "I64", "i8", 8, xg__from_i64 }, { "I32",  "i4", 4, xg__from_i32 },
    { "I16", "i2", 2, xg__from_i16 }, { "I8",   "i1", 1, xg__from_i8 },
    { "U8",  "u1", 1, xg__from_u8 },  { "BOOL", "b1", 1, xg__from_bool }
};

/* The one that holds xg_real without loss: what is written. */
static const xg__dtype *xg__dtype_own(void)
{
    return &xg__dtypes[sizeof(xg_real) == 8 ? 0 : 1];
}

/* By its name in either format; NULL when there is none. */
static const xg__dtype *xg__dtype_find(const char *name, bool npy)
{
    for (size_t i = 0; i < sizeof xg__dtypes / sizeof xg__dtypes[0]; i++) {
        const xg__dtype *type = &xg__dtypes[i];
        if (name[0] && !strcmp(npy ? type->npy : type->safetensors, name)) return type;
    }
    return NULL;
}

/* Does this machine store the low byte first, as both formats do? */
static bool xg__little_endian(void)
{
    const uint16_t one = 1;
    unsigned char first;
    memcpy(&first, &one, 1);
    return first == 1;
}

/* `count` numbers of a type, from bytes to values. Where those are the same, a copy will do. */
static void xg__decode(const xg__dtype *type, bool big_endian, const unsigned char *bytes,
                       xg_real *out, size_t count)
{
    if (type == xg__dtype_own() && big_endian != xg__little_endian()) {
        memcpy(out, bytes, count * sizeof *out);
        return;
    }
    for (size_t i = 0; i < count; i++, bytes += type->size) {
        out[i] = type->value(xg__load_bits(bytes, type->size, big_endian));
    }
}

/* Extents as a file lists them, and their product; rank may be more than the four that are kept. */
typedef struct xg__extents { uint64_t axis[4], count; int rank; } xg__extents;

static const xg__extents xg__extents_none = { { 1, 1, 1, 1 }, 1, 0 };

/* One more axis. A product that wraps around could pass for a small one, so it is refused. */
static void xg__extents_add(xg__extents *e, uint64_t extent, xg__cursor *c)
{
    if (extent != 0 && e->count > UINT64_MAX / extent) {
        xg__cursor_fail(c, XG_ERR_FORMAT, "the shape is too large");
        return;
    }
    e->count *= extent;
    if (e->rank < 4) e->axis[e->rank] = extent;
    if (e->rank < 5) e->rank++;            /* 5 stands for any rank above 4                       */
}

/* The extents as a shape, missing axes 1: [O,F] is n = O, c = F. False: no shape of ours. */
static bool xg__extents_shape(const xg__extents *e, xg_shape *shape)
{
    const uint64_t *a = e->axis;
    for (int i = 0; i < 4; i++) if (a[i] < 1 || a[i] > INT_MAX) return false;
    *shape = xg_shape4((int)a[0], (int)a[1], (int)a[2], (int)a[3]);
    return e->rank <= 4 && xg__shape_valid(*shape);
}

#ifndef XG_NO_STDIO

/* 11.0 Writing: to a temporary file beside the target, which takes the target's name when all is
 *      well. A full disk or a crash leaves the old file as it was, and a reader sees the old file
 *      or the new one, never a part. (C has no way to wait for the disk itself: after a power cut
 *      the file system decides.) */

/* Where bytes go. Without a file they are only counted: a header is composed twice, first to learn
 * its length, and needs no memory. */
typedef struct xg__sink {
    FILE *file;
    uint64_t bytes;
    bool failed;
} xg__sink;

#define XG__PATH_MAX 4096

#ifdef _WIN32
/* rename() does not replace a file here; this does. Declared by hand: windows.h brings too much. */
#ifdef __cplusplus
extern "C"
#endif
__declspec(dllimport) int __stdcall MoveFileExA(const char *from, const char *to, unsigned long);
static bool xg__replace(const char *to, const char *from) { return MoveFileExA(from, to, 1) != 0; }
#else
static bool xg__replace(const char *to, const char *from) { return rename(from, to) == 0; }
#endif

/* Counts and writes. After a failure nothing more is tried; the end tells. */
static void xg__put(xg__sink *s, const void *bytes, size_t count)
{
    s->bytes += count;
    if (s->file && !s->failed) s->failed = fwrite(bytes, 1, count, s->file) != count;
}

static void xg__put_text(xg__sink *s, const char *text) { xg__put(s, text, strlen(text)); }

static void xg__put_number(xg__sink *s, uint64_t value)
{
    char digits[24];
    snprintf(digits, sizeof digits, "%llu", (unsigned long long)value);
    xg__put_text(s, digits);
}

/* An unsigned integer, little-endian. */
static void xg__store_bits(unsigned char *bytes, uint64_t bits, size_t size)
{
    for (size_t i = 0; i < size; i++) bytes[i] = (unsigned char)((bits >> 8 * i) & 255);
}

/* Little-endian, a block at a time: a call of fwrite for each number would cost more than it. */
static void xg__put_reals(xg__sink *s, const xg_real *x, size_t count)
{
    const unsigned char *from = (const unsigned char *)x;
    unsigned char block[512 * sizeof(xg_real)];
    size_t left = count * sizeof *x;
    if (xg__little_endian()) {
        xg__put(s, from, left);
        return;
    }
    for (size_t n = 0; left > 0; left -= n, from += n) {
        n = xg__min(left, sizeof block);
        for (size_t i = 0; i < n; i++) block[i] = from[i ^ (sizeof *x - 1)];   /* turned around */
        xg__put(s, block, n);
    }
}

/* Devices stand in /dev itself, files only below it (/dev/shm). A device is no target: the rename
 * at the end would put a file in its place. */
static bool xg__is_device(const char *path)
{
    return !strncmp(path, "/dev/", 5) && !strchr(path + 5, '/');
}

/* Opens path.tmp, whose name is left in `temporary`. */
static xg__sink xg__save_begin(const char *path, char *temporary, xg_error *error)
{
    xg__sink s = XG__ZEROS;
    if (!path || !path[0]) {
        xg__complain(error, XG_ERR_ARGUMENT, "no path was given");
    } else if (strlen(path) + 5 > XG__PATH_MAX || xg__is_device(path)) {
        xg__complain(error, XG_ERR_IO, "'%.160s' cannot be replaced by a file", path);
    } else {
        strcpy(temporary, path);
        strcat(temporary, ".tmp");
        s.file = fopen(temporary, "wb");
        if (!s.file) {
            xg__complain(error, XG_ERR_IO, "'%.160s' cannot be created; does its folder exist, and "
                         "may you write there?", temporary);
        }
    }
    return s;
}

/* Every write counts, the flush and the close too: a full disk may show only there. */
static void xg__save_end(xg__sink *s, const char *path, const char *temporary, xg_error *error)
{
    if (!s->file) return;
    bool good = fflush(s->file) == 0 && !s->failed && !ferror(s->file);
    good = fclose(s->file) == 0 && good;
    s->file = NULL;
    if (good && xg__replace(path, temporary)) return;
    remove(temporary);
    xg__complain(error, XG_ERR_IO, good ? "'%.160s' cannot be replaced"
                                        : "'%.160s' cannot be written; is the disk full?", path);
}
#endif /* XG_NO_STDIO */

/* 11.1 JSON, as much as the header of a safetensors file may hold: objects, strings, arrays of
 *      whole numbers. The depth is known, so nothing recurses. */

/* Texts go, without their escapes and with a 0 at the end, into a pool one byte larger than the
 * header: no escape is shorter than what it stands for, and the quotes leave room for the 0. */
typedef struct xg__json { xg__cursor c; char *pool; } xg__json;

/* The bytes of the UTF-8 character at s, or 0 if it is none: longer than it needs to be, half of a
 * pair, or beyond Unicode (RFC 3629). */
static size_t xg__utf8(const unsigned char *s, size_t left)
{
    if (left == 0) return 0;
    if (s[0] < 0x80) return 1;
    const size_t length = s[0] >= 0xf0 ? 4 : s[0] >= 0xe0 ? 3 : 2;
    if (s[0] < 0xc2 || s[0] > 0xf4 || length > left) return 0;
    for (size_t i = 1; i < length; i++) {
        if ((s[i] & 0xc0) != 0x80) return 0;
    }
    if (s[0] == 0xe0 && s[1] < 0xa0) return 0;
    if (s[0] == 0xed && s[1] > 0x9f) return 0;
    if (s[0] == 0xf0 && s[1] < 0x90) return 0;
    if (s[0] == 0xf4 && s[1] > 0x8f) return 0;
    return length;
}

/* Writes a character as UTF-8 and returns its bytes: six bits in each of the following ones, what
 * is left behind the marks of the leading one. */
static size_t xg__utf8_put(char *out, uint32_t code)
{
    const size_t length = code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    static const uint32_t lead[5] = { 0, 0, 0xc0, 0xe0, 0xf0 };
    for (size_t i = length; i-- > 1; code >>= 6) out[i] = (char)(unsigned char)(0x80 | (code & 63));
    out[0] = (char)(unsigned char)(lead[length] | code);
    return length;
}

/* The four digits of \uXXXX. */
static uint32_t xg__json_hex(xg__cursor *c)
{
    static const char digits[] = "0123456789abcdef0123456789ABCDEF";
    uint32_t value = 0;
    for (int i = 0; i < 4; i++) {
        const void *found = c->at < c->end ? memchr(digits, *c->at, 32) : NULL;
        if (!found) {
            xg__cursor_fail(c, XG_ERR_FORMAT, "expected four hexadecimal digits");
            return 0;
        }
        value = value << 4 | ((uint32_t)((const char *)found - digits) & 15);
        c->at++;
    }
    return value;
}

/* What follows a backslash. Characters beyond 16 bits come as a pair of halves. */
static size_t xg__json_escape(xg__cursor *c, char *out)
{
    static const char names[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
    const void *found = c->at < c->end ? memchr(names, *c->at, 8) : NULL;
    if (found) {
        c->at++;
        *out = values[(const char *)found - names];
        return 1;
    }
    if (c->at == c->end || *c->at != 'u') {
        xg__cursor_fail(c, XG_ERR_FORMAT, "no such escape");
        return 0;
    }
    c->at++;
    uint32_t code = xg__json_hex(c);
    if (code >> 10 == 0xd800 >> 10 && c->end - c->at > 2 && !memcmp(c->at, "\\u", 2)) {
        c->at += 2;
        const uint32_t low = xg__json_hex(c);
        if (low >> 10 == 0xdc00 >> 10) code = 0x10000 + ((code & 1023) << 10 | (low & 1023));
    }
    if (code == 0 || (code >= 0xd800 && code < 0xe000)) {
        xg__cursor_fail(c, XG_ERR_FORMAT, "the escape is no character that a text may hold");
        return 0;
    }
    return xg__utf8_put(out, code);
}

/* A string, copied to the pool. "" after a failure. */
static const char *xg__json_string(xg__json *j)
{
    xg__cursor *c = &j->c;
    char *text = j->pool, *out = text;
    xg__cursor_expect(c, '"');
    while (c->at < c->end && *c->at != '"') {
        const size_t length = xg__utf8(c->at, (size_t)(c->end - c->at));
        if (*c->at == '\\') {
            c->at++;
            out += xg__json_escape(c, out);
        } else if (length == 0 || *c->at < 0x20) {
            xg__cursor_fail(c, XG_ERR_FORMAT, "a string holds something that is not UTF-8 text");
        } else {
            memcpy(out, c->at, length);
            out += length;
            c->at += length;
        }
    }
    if (c->at == c->end) {
        xg__cursor_fail(c, XG_ERR_FORMAT, "a string does not end");
        *text = 0;
        return text;
    }
    c->at++;
    *out = 0;
    j->pool = out + 1;
    return text;
}

/* Steps through the members of an object or array: false at its end, and after a failure. */
static bool xg__json_more(xg__json *j, char close, bool *first)
{
    if (xg__cursor_failed(&j->c) || xg__cursor_accept(&j->c, close)) return false;
    if (!*first) xg__cursor_expect(&j->c, ',');
    *first = false;
    return !xg__cursor_failed(&j->c);
}

/* 11.1 safetensors: what a file says. It is read, checked and indexed as a whole. The header is
 *
 *          {"__metadata__": {"any key": "any text"},
 *           "conv1.weight": {"dtype": "F32", "shape": [16,3,3,3], "data_offsets": [0,1728]},
 *           "conv1.bias":   {"dtype": "F32", "shape": [16], "data_offsets": [1728,1792]}}
 *
 *      with members in any order. Offsets count from the end of the header. Strictly, the ranges
 *      follow each other without a gap up to the end of the file; files with alignment gaps or
 *      trailing bytes exist, and load with `lenient`. */

#define XG__HEADER_MAX 100000000.0   /* bytes of header, as the format limits it                  */

enum { XG__LOAD_NEW = -1, XG__LOAD_NOT = -2, XG__SLOT_SIZE = 64 };

/* A tensor of the file. */
typedef struct xg__stored {
    const char *name;                      /* first: what xg__by_name compares                    */
    const xg__dtype *type;                 /* NULL: not known here                                */
    xg__extents extents;
    uint64_t begin, end;
    xg_shape shape;                        /* once it is known to be one of ours                  */
    int  entry;                            /* where it goes in the store, or one of XG__LOAD_...  */
    bool buffer, frozen;                   /* what the metadata says of it                        */
} xg__stored;

/* A text of the metadata. */
typedef struct xg__meta { const char *key, *value; } xg__meta;

/* A file and its index. Texts and lists lie in one borrowed block. */
typedef struct xg__weights {
    const unsigned char *data;
    uint64_t bytes;                        /* of data                                             */
    xg__stored *stored;
    xg__meta   *pair;
    const void **sorted;                   /* of `stored`, for checks and for finding names       */
    int  count, pairs;
    bool lenient;
    bool checkpoint;                       /* holds optimiser state too                           */
    xg_error *error;
} xg__weights;

/* Both xg__stored and xg__meta begin with their name. */
static int xg__by_name(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* By begin, then by end, so that an empty tensor stands before the one that begins where it is. */
static int xg__by_range(const void *a, const void *b)
{
    const xg__stored *x = (const xg__stored *)a, *y = (const xg__stored *)b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return x->end < y->end ? -1 : x->end > y->end;
}

/* Lets item[root] of a heap of `count` sink to its place. */
static void xg__sift(const void **item, size_t root, size_t count,
                     int (*order)(const void *, const void *))
{
    const void *moved = item[root];
    for (size_t child; (child = 2 * root + 1) < count; root = child) {
        if (child + 1 < count && order(item[child], item[child + 1]) < 0) child++;
        if (order(moved, item[child]) >= 0) break;
        item[root] = item[child];
    }
    item[root] = moved;
}

/* Heap sort: no memory, and no order of names in a hostile file makes it slow. */
static void xg__sort(const void **item, size_t count, int (*order)(const void *, const void *))
{
    for (size_t i = count / 2; i-- > 0;) xg__sift(item, i, count, order);
    for (size_t i = count; i-- > 1;) {
        const void *largest = item[0];
        item[0] = item[i];
        item[i] = largest;
        xg__sift(item, 0, i, order);
    }
}

/* How bsearch compares a name with that of what a place in a sorted list points at. */
static int xg__name_at(const void *name, const void *place)
{
    return xg__by_name(name, *(const void *const *)place);
}

/* The tensor of that name, or NULL; `sorted` is by name. */
static xg__stored *xg__weights_find(const xg__weights *w, const char *name)
{
    const void *place = bsearch(&name, w->sorted, (size_t)w->count, sizeof *w->sorted, xg__name_at);
    if (!place) return NULL;
    return w->stored + ((const xg__stored *)*(const void *const *)place - w->stored);
}

/* {"dtype": "F32", "shape": [2,3], "data_offsets": [0,24]}: each key once, in any order. */
static void xg__weights_tensor(xg__weights *w, xg__json *j, const char *name)
{
    xg__cursor *c = &j->c;
    xg__stored t = XG__ZEROS;
    int seen = 0, ends = 0;
    t.name = name;
    t.extents = xg__extents_none;
    xg__cursor_expect(c, '{');
    for (bool first = true; xg__json_more(j, '}', &first);) {
        char *pool = j->pool;              /* neither key nor type is kept                        */
        const char *key = xg__json_string(j);
        const int bit = !strcmp(key, "dtype") ? 1 : !strcmp(key, "shape") ? 2
                      : !strcmp(key, "data_offsets") ? 4 : 0;
        if (!bit || (seen & bit)) xg__cursor_fail(c, XG_ERR_FORMAT, "an unknown or second key");
        seen |= bit;
        xg__cursor_expect(c, ':');
        if (bit == 1) t.type = xg__dtype_find(xg__json_string(j), false);
        else xg__cursor_expect(c, '[');
        for (bool head = true; bit != 1 && xg__json_more(j, ']', &head);) {
            const uint64_t number = xg__cursor_number(c);
            if (bit == 2) xg__extents_add(&t.extents, number, c);
            else if (ends < 2) *(ends++ ? &t.end : &t.begin) = number;
            else xg__cursor_fail(c, XG_ERR_FORMAT, "data_offsets are two numbers");
        }
        j->pool = pool;
    }
    if (seen != 7 || ends != 2) xg__cursor_fail(c, XG_ERR_FORMAT, "the tensor lacks something");
    if (!xg__cursor_failed(c)) w->stored[w->count++] = t;
}

/* {"key": "value", ...}: texts only. */
static void xg__weights_metadata(xg__weights *w, xg__json *j)
{
    xg__cursor_expect(&j->c, '{');
    for (bool first = true; xg__json_more(j, '}', &first);) {
        xg__meta p;
        p.key = xg__json_string(j);
        xg__cursor_expect(&j->c, ':');
        p.value = xg__json_string(j);
        if (!xg__cursor_failed(&j->c)) w->pair[w->pairs++] = p;
    }
}

/* The whole object, and nothing but white space after it. */
static void xg__weights_header(xg__weights *w, xg__json *j)
{
    bool metadata = false;
    xg__cursor_expect(&j->c, '{');
    for (bool first = true; xg__json_more(j, '}', &first);) {
        const char *name = xg__json_string(j);
        const bool special = !strcmp(name, "__metadata__");
        if (special && metadata) xg__cursor_fail(&j->c, XG_ERR_FORMAT, "a second __metadata__");
        xg__cursor_expect(&j->c, ':');
        if (special) xg__weights_metadata(w, j);
        else xg__weights_tensor(w, j, name);
        metadata = metadata || special;
    }
    if (xg__cursor_peek(&j->c) != -1) {
        xg__cursor_fail(&j->c, XG_ERR_FORMAT, "text after the object");
    }
}

/* Does its range hold what its type and shape ask for? */
static void xg__weights_check(xg__weights *w, const xg__stored *t)
{
    if (t->begin > t->end || t->end > w->bytes) {
        xg__complain(w->error, XG_ERR_FORMAT, "tensor '%.80s': its range leaves the file", t->name);
    } else if (!t->type && !w->lenient) {
        xg__complain(w->error, XG_ERR_UNSUPPORTED, "tensor '%.80s' has no known type of number",
                     t->name);
    } else if (t->type && ((t->end - t->begin) % t->type->size != 0
                           || (t->end - t->begin) / t->type->size != t->extents.count)) {
        xg__complain(w->error, XG_ERR_FORMAT, "tensor '%.80s': its shape asks for %.0f numbers of "
                     "%d bytes, its range has %.0f bytes", t->name, (double)t->extents.count,
                     (int)t->type->size, (double)(t->end - t->begin));
    }
}

/* Ranges never overlap. Strictly, they leave nothing over, not between them and not at the end. */
static void xg__weights_layout(xg__weights *w)
{
    uint64_t reached = 0;
    for (int i = 0; i < w->count; i++) w->sorted[i] = &w->stored[i];
    xg__sort(w->sorted, (size_t)w->count, xg__by_range);
    for (int i = 0; i < w->count; i++) {
        const xg__stored *t = (const xg__stored *)w->sorted[i];
        xg__weights_check(w, t);
        if (t->begin < reached) {
            xg__complain(w->error, XG_ERR_FORMAT, "tensor '%.80s' overlaps another", t->name);
        } else if (t->begin > reached && !w->lenient) {
            xg__complain(w->error, XG_ERR_FORMAT, "there is a gap before tensor '%.80s'", t->name);
        }
        reached = t->end;
    }
    if (reached != w->bytes && !w->lenient) {
        xg__complain(w->error, XG_ERR_FORMAT, "bytes are left over after the last tensor");
    }
}

/* Sorts by name and refuses a name that comes twice. */
static void xg__weights_unique(xg__weights *w, int count)
{
    xg__sort(w->sorted, (size_t)count, xg__by_name);
    for (int i = 1; i < count; i++) {
        if (xg__by_name(w->sorted[i - 1], w->sorted[i]) == 0) {
            xg__complain(w->error, XG_ERR_FORMAT, "the name '%.80s' comes twice",
                         *(const char *const *)w->sorted[i]);
        }
    }
}

/* The length of the header, 0 if it cannot be. */
static size_t xg__weights_length(const unsigned char *bytes, size_t count, xg_error *error)
{
    const uint64_t length = count < 8 ? 0 : xg__load_bits(bytes, 8, false);
    if (length < 2 || length > count - 8 || (double)length > XG__HEADER_MAX) {
        xg__complain(error, XG_ERR_FORMAT, "this is no safetensors file, or it is cut short");
    } else if (bytes[8] != '{') {
        xg__complain(error, XG_ERR_FORMAT, "the header does not start with {");
    } else {
        return (size_t)length;
    }
    return 0;
}

/* Indexes a whole file. The index lies in *loan, the caller's to give back in any case. A tensor
 * takes four colons of the header, a text of the metadata one: their number bounds the memory. */
static bool xg__weights_read(xg__weights *w, xg__arena *arena, xg__loan *loan,
                             const unsigned char *bytes, size_t count)
{
    const size_t length = xg__weights_length(bytes, count, w->error);
    uint64_t colons = 0;
    if (length == 0) return false;
    for (size_t i = 0; i < length; i++) colons += bytes[8 + i] == ':';
    *loan = xg__borrow(arena, (colons / 4 + 1) * sizeof(xg__stored) + length + 1
                              + (colons + 1) * (sizeof(xg__meta) + sizeof(void *)));
    if (!loan->memory) {
        xg__complain(w->error, XG_ERR_MEMORY, "out of memory for the index of the file");
        return false;
    }
    w->stored = (xg__stored *)loan->memory;
    w->pair = (xg__meta *)(void *)(w->stored + colons / 4 + 1);
    w->sorted = (const void **)(void *)(w->pair + colons + 1);
    w->data = bytes + 8 + length;
    w->bytes = count - 8 - length;

    xg__json j = { { bytes + 8, bytes + 8, bytes + 8 + length, w->error },
                   (char *)(void *)(w->sorted + colons + 1) };
    xg__weights_header(w, &j);
    if (w->error->code != XG_ERR_OK) return false;
    for (int i = 0; i < w->pairs; i++) w->sorted[i] = &w->pair[i];
    xg__weights_unique(w, w->pairs);
    xg__weights_layout(w);
    xg__weights_unique(w, w->count);
    return w->error->code == XG_ERR_OK;
}

/* 11.1 safetensors: from the file to the store, in four steps. Only the last changes anything:
 *
 *     read      index the file and check it
 *     plan      for each tensor of the file, where it goes; the report
 *     reserve   new entries and state, still zero: whatever may run out of memory
 *     commit    copy the numbers, which cannot fail                                              */

/* Are these the same numbers in the same order? Extents of 1 do not count: [64] is [1 64 1 1]. */
static bool xg__shape_alike(xg_shape a, xg_shape b)
{
    const int x[5] = { a.n, a.c, a.h, a.w, 0 }, y[5] = { b.n, b.c, b.h, b.w, 0 };
    int i = 0, k = 0;
    for (;;) {
        while (x[i] == 1) i++;
        while (y[k] == 1) k++;
        if (x[i] != y[k]) return false;
        if (x[i] == 0) return true;
        i++;
        k++;
    }
}

/* Tensors of a checkpoint that belong to an optimiser: "optim:<its slot>:<which>:<parameter>". */
static bool xg__is_state(const xg__weights *w, const xg__stored *t)
{
    return w->checkpoint && xg__starts_with(t->name, "optim:");
}

/* Can it name an optimiser's slot in a file? */
static bool xg__is_slot(const char *name)
{
    return name[0] && strlen(name) < XG__SLOT_SIZE && !strchr(name, ':');
}

/* Can what is wanted be loaded at all? */
static bool xg__load_can(xg__weights *w, xg__stored *t)
{
    if (!t->type || !t->name[0]) {
        xg__complain(w->error, XG_ERR_UNSUPPORTED, "tensor '%.80s' has no name or no known type of "
                     "number", t->name);
    } else if (!xg__extents_shape(&t->extents, &t->shape)) {
        xg__complain(w->error, XG_ERR_UNSUPPORTED, "tensor '%.80s' has more than four axes, or an "
                     "empty or a huge one", t->name);
    }
    return w->error->code == XG_ERR_OK;
}

/* What the file's own metadata says of it, and of which tensors: buffers, frozen. */
static void xg__load_flags(xg__weights *w)
{
    for (int i = 0; i < w->pairs; i++) {
        const char *key = w->pair[i].key;
        if (!strcmp(key, "xguide.checkpoint")) w->checkpoint = !strcmp(w->pair[i].value, "1");
        const char *buffer = xg__after(key, "xguide.buffer:");
        const char *frozen = xg__after(key, "xguide.frozen:");
        xg__stored *t = buffer || frozen ? xg__weights_find(w, buffer ? buffer : frozen) : NULL;
        if (t && buffer) t->buffer = true;
        if (t && frozen) t->frozen = true;
    }
}

/* Tensors of the file meet entries of the store, by name. */
static void xg__load_plan(xg__weights *w, const xg_params *p, const xg_load_options *o,
                          xg_load_report *report)
{
    const char *skip = o->skip && o->skip[0] ? o->skip : NULL;
    for (int i = 0; i < w->count; i++) w->stored[i].entry = XG__LOAD_NOT;
    for (int i = 0; i < p->count; i++) {
        const char *name = p->entry[i].name;
        if (skip && xg__starts_with(name, skip)) continue;
        xg__stored *t = xg__weights_find(w, name);
        if (t && !xg__is_state(w, t)) {
            t->entry = i;
        } else {
            report->missing++;
            xg__list_add(report->missing_names, sizeof report->missing_names, name);
        }
    }
    for (int i = 0; i < w->count; i++) {
        xg__stored *t = &w->stored[i];
        if ((skip && xg__starts_with(t->name, skip)) || xg__is_state(w, t)) continue;
        if (t->entry == XG__LOAD_NOT && o->create) t->entry = XG__LOAD_NEW;
        if (t->entry == XG__LOAD_NOT) {
            report->unexpected++;
            xg__list_add(report->unexpected_names, sizeof report->unexpected_names, t->name);
        } else if (!xg__load_can(w, t)) {
            return;
        } else if (t->entry >= 0 && !xg__shape_alike(t->shape, p->entry[t->entry].shape)) {
            t->entry = XG__LOAD_NOT;
            report->mismatched++;
            xg__list_add(report->mismatched_names, sizeof report->mismatched_names, t->name);
        } else {
            report->loaded++;
        }
    }
}

/* What a checkpoint adds to each of the steps stands in 11.2. */
typedef struct xg__notes { xg_note *note; int max, count; } xg__notes;   /* where they go */
static void xg__resume_plan(xg__weights *w, const xg_load_report *report);
static bool xg__resume_reserve(const xg__weights *w, xg_params *p);
static void xg__resume_commit(const xg__weights *w, xg_params *p, xg__notes *notes);

/* Adds what is new to the store; all of it, or nothing and no memory either. An entry keeps the
 * axes that it has in the file. */
static bool xg__load_entries(xg__weights *w, xg_params *p)
{
    const xg__place place = xg__arena_mark(&p->arena);
    xg_params before = *p;
    bool good = true;
    for (int i = 0; good && i < w->count; i++) {
        xg__stored *t = &w->stored[i];
        if (t->entry != XG__LOAD_NEW) continue;
        t->entry = xg_params_add(p, t->name, t->shape, !t->buffer);
        good = t->entry >= 0;
        if (good) p->entry[t->entry].axes = t->extents.rank;
    }
    if (!good) {
        before.arena = p->arena;           /* new chunks stay: empty                              */
        before.error = p->error;
        *p = before;
        xg__arena_release(&p->arena, place);
    }
    return good;
}

/* Everything of a load that may ask for memory. State that was made before it ran out stays, as
 * zeros: the same as none. */
static bool xg__load_reserve(xg__weights *w, xg_params *p, bool resume)
{
    const int before = p->count;
    const bool good = xg__load_entries(w, p) && (!resume || xg__resume_reserve(w, p));
    if (!good) {
        xg__params_cut(p, before);
        xg__complain(w->error, XG_ERR_MEMORY, "out of memory for what the file holds");
    }
    return good;
}

/* Converts a tensor into memory of its size. */
static void xg__load_numbers(const xg__weights *w, const xg__stored *t, xg_real *out)
{
    xg__decode(t->type, false, w->data + t->begin, out, (size_t)t->extents.count);
}

/* The store takes the numbers. */
static void xg__load_commit(const xg__weights *w, xg_params *p)
{
    for (int i = 0; i < w->count; i++) {
        const xg__stored *t = &w->stored[i];
        if (t->entry < 0) continue;
        xg__load_numbers(w, t, p->entry[t->entry].data);
    }
}

/* The whole load; options and report may be NULL, and notes are unless a checkpoint is resumed. */
static xg_code xg__load(xg_params *p, const char *where, const unsigned char *bytes, size_t count,
                        const xg_load_options *o, xg_load_report *report, xg__notes *notes)
{
    const xg_load_options usual = { false, false, NULL };
    xg_load_report unread = XG__ZEROS;
    xg_error error = { XG_ERR_OK, "" };
    xg__loan loan = { NULL, 0 };
    xg__weights w = XG__ZEROS;
    if (!o) o = &usual;
    if (!report) report = &unread;
    w.error = &error;
    w.lenient = o->lenient;
    if (xg__weights_read(&w, &p->arena, &loan, bytes, count)) {
        xg__load_flags(&w);
        xg__load_plan(&w, p, o, report);
        if (notes) xg__resume_plan(&w, report);
        if (error.code == XG_ERR_OK && xg__load_reserve(&w, p, notes != NULL)) {
            xg__load_commit(&w, p);
            if (notes) xg__resume_commit(&w, p, notes);
        }
    }
    xg__give_back(&p->arena, loan);
    if (error.code != XG_ERR_OK) {
        xg__complain(&p->error, error.code, "safetensors '%.90s': %s", where, error.text);
        memset(report, 0, sizeof *report);
    }
    return xg_params_error(p)->code;
}

XG_API_DEF xg_code xg_params_parse(xg_params *params, const void *bytes, size_t count,
                                   const xg_load_options *o, xg_load_report *report)
{
    if (report) memset(report, 0, sizeof *report);
    if (xg_params_error(params)->code != XG_ERR_OK) return xg_params_error(params)->code;
    return xg__load(params, "(memory)", (const unsigned char *)bytes, bytes ? count : 0, o, report,
                    NULL);
}

#ifndef XG_NO_STDIO

/* Reads a file whole, so that a disk that fails halfway has changed nothing, and loads that. */
static xg_code xg__load_path(xg_params *p, const char *path, const xg_load_options *o,
                             xg_load_report *report, xg__notes *notes)
{
    xg_error error = { XG_ERR_OK, "" };
    xg__loan loan = { NULL, 0 };
    if (report) memset(report, 0, sizeof *report);
    if (xg_params_error(p)->code != XG_ERR_OK) return xg_params_error(p)->code;
    xg__source s = xg__source_open(path, &error);
    const uint64_t size = s.left;
    if (error.code == XG_ERR_OK) {
        loan = xg__borrow(&p->arena, size);
        if (!loan.memory) {
            xg__complain(&error, XG_ERR_MEMORY, "out of memory for its %.0f bytes", (double)size);
        } else if (!xg__source_read(&s, loan.memory, (size_t)size)) {
            xg__complain(&error, XG_ERR_IO, "reading failed");
        }
    }
    xg__source_close(&s);
    if (error.code != XG_ERR_OK) {
        xg__complain(&p->error, error.code, "safetensors '%.90s': %s", path ? path : "",
                     error.text);
    } else {
        xg__load(p, path, (const unsigned char *)loan.memory, (size_t)size, o, report, notes);
    }
    xg__give_back(&p->arena, loan);
    return p->error.code;
}

XG_API_DEF xg_code xg_params_load(xg_params *params, const char *path, const xg_load_options *o,
                                  xg_load_report *report)
{
    return xg__load_path(params, path, o, report, NULL);
}

/* 11.1 safetensors: from the store to a file. What the format has no place for goes into the
 *      metadata, under keys that begin with "xguide.":
 *
 *          xguide.version          of the library that wrote the file
 *          xguide.buffer:NAME      the tensor is not trained
 *          xguide.checkpoint       "1": the file has state too, and the following keys
 *          xguide.frozen:NAME      training was told to leave it alone
 *          xguide.steps:SLOT       steps taken by the optimiser with that slot
 *          xguide.note:KEY         a note of the user
 *
 *      and optimiser state is a tensor "optim:SLOT:0:NAME" or "optim:SLOT:1:NAME". The same store
 *      gives the same bytes. */

/* What to write. */
typedef struct xg__saving {
    const xg_params *params;
    const xg_note *notes;
    int  count;                            /* of notes                                            */
    bool checkpoint;                       /* optimiser state, step counts and notes too          */
} xg__saving;

/* The list of optimisers whose state is written. */
static const xg__steps *xg__saved_steps(const xg__saving *what)
{
    return what->checkpoint ? what->params->steps : NULL;
}

/* A text between quotes; the caller has made sure that it is UTF-8. */
static void xg__put_escaped(xg__sink *s, const char *text)
{
    static const char digits[] = "0123456789abcdef";
    for (; *text; text++) {
        const unsigned char byte = (unsigned char)*text;
        char escape[6] = { '\\', 'u', '0', '0', digits[byte >> 4], digits[byte & 15] };
        if (byte < 0x20) xg__put(s, escape, 6);
        else if (byte == '"' || byte == '\\') xg__put(s, byte == '"' ? "\\\"" : "\\\\", 2);
        else xg__put(s, text, 1);
    }
}

/* ,"prefix + key":"value" of the metadata. */
static void xg__put_pair(xg__sink *s, const char *prefix, const char *key, const char *value)
{
    xg__put_text(s, ",\n\"");
    xg__put_text(s, prefix);
    xg__put_escaped(s, key);
    xg__put_text(s, "\":\"");
    xg__put_escaped(s, value);
    xg__put_text(s, "\"");
}

/* What weights do not say: which are buffers. And for a checkpoint what is needed to go on. */
static void xg__put_metadata(xg__sink *s, const xg__saving *what)
{
    const xg_params *p = what->params;
    xg__put_text(s, "\"__metadata__\":{\"xguide.version\":\"" XG_VERSION "\"");
    for (int i = 0; i < p->count; i++) {
        const xg__entry *e = &p->entry[i];
        if (!e->trainable) xg__put_pair(s, "xguide.buffer:", e->name, "1");
        if (e->frozen && what->checkpoint) xg__put_pair(s, "xguide.frozen:", e->name, "1");
    }
    for (const xg__steps *at = xg__saved_steps(what); at; at = at->next) {
        char steps[24];
        snprintf(steps, sizeof steps, "%lld", (long long)at->steps);
        xg__put_pair(s, "xguide.steps:", at->optim, steps);
    }
    for (int i = 0; i < what->count; i++) {
        xg__put_pair(s, "xguide.note:", what->notes[i].key, what->notes[i].value);
    }
    if (what->checkpoint) xg__put_pair(s, "xguide.checkpoint", "", "1");
    xg__put_text(s, "}");
}

/* The line of the header about one entry, or about a slot of it. Trailing extents of 1 are left
 * out, so that biases and dense weights have the axes that they have elsewhere. */
static void xg__put_line(xg__sink *s, const xg__entry *e, const xg__slot *slot, uint64_t *at)
{
    const int axis[4] = { e->shape.n, e->shape.c, e->shape.h, e->shape.w };
    int rank = 4;
    while (rank > (e->axes > 1 ? e->axes : 1) && axis[rank - 1] == 1) rank--;
    xg__put_text(s, ",\n\"");
    if (slot) {
        xg__put_text(s, "optim:");
        xg__put_escaped(s, slot->optim);
        xg__put_text(s, slot->which ? ":1:" : ":0:");
    }
    xg__put_escaped(s, e->name);
    xg__put_text(s, "\":{\"dtype\":\"");
    xg__put_text(s, xg__dtype_own()->safetensors);
    xg__put_text(s, "\",\"shape\":[");
    for (int i = 0; i < rank; i++) {
        if (i > 0) xg__put_text(s, ",");
        xg__put_number(s, (uint64_t)axis[i]);
    }
    xg__put_text(s, "],\"data_offsets\":[");
    xg__put_number(s, *at);
    xg__put_text(s, ",");
    *at += xg_shape_size(e->shape) * sizeof(xg_real);
    xg__put_number(s, *at);
    xg__put_text(s, "]}");
}

/* Every entry and then all state: their lines in the header, or their numbers. */
static void xg__put_tensors(xg__sink *s, const xg__saving *what, bool lines)
{
    const xg_params *p = what->params;
    uint64_t at = 0;
    for (int i = 0; i < p->count; i++) {
        const xg__entry *e = &p->entry[i];
        if (lines) xg__put_line(s, e, NULL, &at);
        else xg__put_reals(s, e->data, xg_shape_size(e->shape));
    }
    for (const xg__steps *optim = xg__saved_steps(what); optim; optim = optim->next) {
        for (int k = 0; k < 2 * p->count; k++) {
            const xg__entry *e = &p->entry[k % p->count];
            const xg__slot *slot = xg__slot_find(e, optim->optim, k / p->count);
            if (slot && lines) xg__put_line(s, e, slot, &at);
            if (slot && !lines) xg__put_reals(s, slot->data, xg_shape_size(e->shape));
        }
    }
}

/* The JSON object. One tensor a line: people look into files. */
static void xg__put_header(xg__sink *s, const xg__saving *what)
{
    xg__put_text(s, "{");
    xg__put_metadata(s, what);
    xg__put_tensors(s, what, true);
    xg__put_text(s, "}");
}

/* Is this UTF-8 text that ends within `size` bytes? */
static bool xg__is_text(const char *text, size_t size)
{
    const unsigned char *s = (const unsigned char *)text;
    const void *end = memchr(text, 0, size);
    size_t left = end ? (size_t)((const char *)end - text) : 0, length = 0;
    for (; left > 0; left -= length, s += length) {
        length = xg__utf8(s, left);
        if (length == 0) return false;
    }
    return end != NULL;
}

/* Would the file be read back as it was? Checked before anything is written. */
static void xg__save_check(const xg__saving *what, xg_error *error)
{
    const xg_params *p = what->params;
    for (int i = 0; i < p->count; i++) {
        const xg__entry *e = &p->entry[i];
        if (!xg__is_text(e->name, strlen(e->name) + 1) || !strcmp(e->name, "__metadata__")
            || xg__starts_with(e->name, "optim:")) {
            xg__complain(error, XG_ERR_ARGUMENT, "'%.80s' cannot be a name in a file", e->name);
        }
    }
    for (const xg__steps *at = xg__saved_steps(what); at; at = at->next) {
        if (xg__is_text(at->optim, strlen(at->optim) + 1) && xg__is_slot(at->optim)) continue;
        xg__complain(error, XG_ERR_ARGUMENT, "'%.80s' cannot name a slot in a file", at->optim);
    }
    for (int i = 0; i < what->count; i++) {
        const xg_note *note = &what->notes[i];
        if (!xg__is_text(note->key, sizeof note->key)
            || !xg__is_text(note->value, sizeof note->value)) {
            xg__complain(error, XG_ERR_ARGUMENT, "note %d is no text that ends", i);
        }
        for (int k = 0; error->code == XG_ERR_OK && k < i; k++) {
            if (strcmp(note->key, what->notes[k].key) != 0) continue;
            xg__complain(error, XG_ERR_ARGUMENT, "two notes have the key '%s'", note->key);
        }
    }
}

/* The numbers start at a multiple of 8: spaces at the end of the header are part of the format. */
static xg_code xg__save(const xg__saving *what, const char *path, xg_error *error)
{
    char temporary[XG__PATH_MAX];
    unsigned char length[8];
    xg__sink count = XG__ZEROS;
    xg__save_check(what, error);
    if (error->code != XG_ERR_OK) return error->code;
    xg__put_header(&count, what);
    const uint64_t padded = (count.bytes + 7) / 8 * 8;
    xg__store_bits(length, padded, 8);

    xg__sink s = xg__save_begin(path, temporary, error);
    xg__put(&s, length, 8);
    xg__put_header(&s, what);
    xg__put(&s, "       ", (size_t)(padded - count.bytes));
    xg__put_tensors(&s, what, false);
    xg__save_end(&s, path, temporary, error);
    return error->code;
}

XG_API_DEF xg_code xg_params_save(const xg_params *params, const char *path, xg_error *error)
{
    const xg__saving weights = { params, NULL, 0, false };
    xg_error unread;
    if (!error) error = &unread;
    memset(error, 0, sizeof *error);
    if (!params) xg__complain(error, XG_ERR_ARGUMENT, "there is no store to save");
    else xg__save(&weights, path, error);
    return error->code;
}
#endif /* XG_NO_STDIO */

/* 11.2 Checkpoints: safetensors with optimiser state, counts and notes. */

/* A state tensor in parts, and which tensor of the file it belongs to. */
typedef struct xg__state { char optim[XG__SLOT_SIZE]; int which; xg__stored *of; } xg__state;

/* Takes such a name apart. False: it is not one, or its parameter is not in the file. */
static bool xg__state_split(const xg__weights *w, const xg__stored *t, xg__state *state)
{
    const char *optim = xg__after(t->name, "optim:"), *colon = strchr(optim, ':');
    if (!colon || colon == optim || (size_t)(colon - optim) >= sizeof state->optim) return false;
    if (colon[1] < '0' || colon[1] > '1' || colon[2] != ':') return false;
    memcpy(state->optim, optim, (size_t)(colon - optim));
    state->optim[colon - optim] = 0;
    state->which = colon[1] - '0';
    state->of = xg__weights_find(w, colon + 3);
    return state->of && !xg__is_state(w, state->of);
}

/* The count that a "xguide.steps:<slot>" text says, or -1. */
static int64_t xg__steps_said(const char *value)
{
    xg_error error = { XG_ERR_OK, "" };
    const unsigned char *text = (const unsigned char *)value;
    xg__cursor c = { text, text, text + strlen(value), &error };
    const uint64_t steps = xg__cursor_number(&c);
    return c.at == c.end && steps <= INT64_MAX && error.code == XG_ERR_OK ? (int64_t)steps : -1;
}

/* Do key and text fit into a note of ours? */
static bool xg__note_fits(const char *key, const char *value)
{
    return strlen(key) < sizeof(((xg_note *)0)->key)
        && strlen(value) < sizeof(((xg_note *)0)->value);
}

/* A checkpoint must be whole, of this build's numbers, and the one of this model. */
static void xg__resume_plan(xg__weights *w, const xg_load_report *report)
{
    xg_error *error = w->error;
    if (error->code != XG_ERR_OK) return;
    if (!w->checkpoint) xg__complain(error, XG_ERR_FORMAT, "this is no checkpoint, only weights");
    if (report->missing) {
        xg__complain(error, XG_ERR_NAME, "it lacks %.180s", report->missing_names);
    } else if (report->mismatched) {
        xg__complain(error, XG_ERR_SHAPE, "other shapes there: %.180s", report->mismatched_names);
    }
    for (int i = 0; i < w->count; i++) {
        xg__stored *t = &w->stored[i];
        xg__state state;
        if (t->type != xg__dtype_own()) {
            xg__complain(error, XG_ERR_UNSUPPORTED, "its numbers are not %s, as this build's are",
                         xg__dtype_own()->safetensors);
        }
        if (!xg__is_state(w, t) || !xg__load_can(w, t)) continue;
        if (!xg__state_split(w, t, &state) || !xg__load_can(w, state.of)
            || !xg__shape_alike(t->shape, state.of->shape)) {
            xg__complain(error, XG_ERR_FORMAT, "'%.80s' belongs to no parameter", t->name);
        }
    }
    for (int i = 0; i < w->pairs; i++) {
        const char *key = w->pair[i].key, *value = w->pair[i].value;
        const char *slot = xg__after(key, "xguide.steps:"), *note = xg__after(key, "xguide.note:");
        if ((slot && (!xg__is_slot(slot) || xg__steps_said(value) < 0))
            || (note && !xg__note_fits(note, value))) {
            xg__complain(error, XG_ERR_FORMAT, "'%.80s' is malformed", key);
        }
    }
}

/* Counts and state, still zero. Counts come first, in the order of the file: so a store that is
 * saved again gives the same file. */
static bool xg__resume_reserve(const xg__weights *w, xg_params *p)
{
    bool good = true;
    for (int i = 0; good && i < w->pairs; i++) {
        const char *slot = xg__after(w->pair[i].key, "xguide.steps:");
        if (slot) good = xg__steps_of(p, slot) != NULL;
    }
    for (int i = 0; good && i < w->count; i++) {
        const xg__stored *t = &w->stored[i];
        xg__state state;
        if (!xg__is_state(w, t) || !xg__state_split(w, t, &state)) continue;
        good = xg__slot_of(p, &p->entry[state.of->entry], state.optim, state.which) != NULL;
    }
    return good;
}

/* In the order of the file, as many as there is room for. */
static void xg__resume_notes(const xg__weights *w, xg__notes *notes)
{
    for (int i = 0; i < w->pairs && notes->count < notes->max; i++) {
        const char *key = xg__after(w->pair[i].key, "xguide.note:");
        if (!key) continue;
        xg_note *note = &notes->note[notes->count++];
        memset(note, 0, sizeof *note);
        strcpy(note->key, key);
        strcpy(note->value, w->pair[i].value);
    }
}

/* Makes the rest of the store what it was. State and counts that the checkpoint lacks become 0. */
static void xg__resume_commit(const xg__weights *w, xg_params *p, xg__notes *notes)
{
    for (int i = 0; i < p->count; i++) {
        const size_t bytes = xg_shape_size(p->entry[i].shape) * sizeof(xg_real);
        for (xg__slot *s = p->entry[i].slots; s; s = s->next) memset(s->data, 0, bytes);
    }
    for (xg__steps *at = p->steps; at; at = at->next) at->steps = 0;
    for (int i = 0; i < w->count; i++) {
        const xg__stored *t = &w->stored[i];
        xg__state state;
        if (xg__is_state(w, t) && xg__state_split(w, t, &state)) {
            xg__entry *owner = &p->entry[state.of->entry];
            xg__load_numbers(w, t, xg__slot_find(owner, state.optim, state.which)->data);
        } else if (t->entry >= 0) {
            p->entry[t->entry].trainable = !t->buffer;
            p->entry[t->entry].frozen = t->frozen;
        }
    }
    for (int i = 0; i < w->pairs; i++) {
        const char *slot = xg__after(w->pair[i].key, "xguide.steps:");
        if (slot) xg__steps_of(p, slot)->steps = xg__steps_said(w->pair[i].value);
    }
    xg__resume_notes(w, notes);
}

#ifndef XG_NO_STDIO
XG_API_DEF xg_code xg_checkpoint_load(xg_params *params, const char *path, xg_note *notes, int max,
                                      int *count)
{
    const xg_load_options whole = { false, true, NULL };
    xg__notes wanted = { notes, notes ? max : 0, 0 };
    const xg_code code = xg__load_path(params, path, &whole, NULL, &wanted);
    if (count) *count = wanted.count;
    return code;
}

XG_API_DEF xg_code xg_checkpoint_save(xg_params *params, const char *path, const xg_note *notes,
                                      int count)
{
    const xg__saving all = { params, notes, notes && count > 0 ? count : 0, true };
    xg_error error = { XG_ERR_OK, "" };
    if (xg_params_error(params)->code != XG_ERR_OK) return xg_params_error(params)->code;
    if (xg__save(&all, path, &error) != XG_ERR_OK) {
        xg__complain(&params->error, error.code, "checkpoint: %s", error.text);
    }
    return params->error.code;
}
#endif

/* 11.3 npy. The header is a Python dict, such as
 *
 *          {'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }
 *
 *      in which descr is a byte order and a type. The numbers follow in row-major order. */

#define XG__NPY_HEADER 4096   /* far more than four axes need                                     */

typedef struct xg__npy {
    const xg__dtype *type;
    bool big_endian;
    xg_shape shape;
} xg__npy;

/* A Python string without escapes, in either quotes. */
static void xg__npy_string(xg__cursor *c, char *out, size_t size)
{
    const int quote = xg__cursor_peek(c);
    size_t length = 0;
    out[0] = 0;
    if (quote != '\'' && quote != '"') xg__cursor_fail(c, XG_ERR_FORMAT, "expected a string");
    else c->at++;
    while (c->at < c->end && *c->at != quote && *c->at != '\\' && length + 1 < size) {
        out[length++] = (char)*c->at++;
    }
    out[length] = 0;
    if (c->at < c->end && *c->at == quote) c->at++;
    else xg__cursor_fail(c, XG_ERR_FORMAT, "the string is not one of npy's");
}

/* '<f4': byte order, kind, bytes. Numbers of one byte have no order and are written '|u1'. */
static void xg__npy_descr(xg__cursor *c, xg__npy *npy)
{
    char text[24];
    if (xg__cursor_peek(c) == '[') {
        xg__cursor_fail(c, XG_ERR_UNSUPPORTED, "records of several fields are not supported");
        return;
    }
    xg__npy_string(c, text, sizeof text);
    npy->type = text[0] ? xg__dtype_find(text + 1, true) : NULL;
    npy->big_endian = text[0] == '>';
    if (!npy->type || !strchr("<>|", text[0]) || (text[0] == '|' && npy->type->size > 1)) {
        xg__cursor_fail(c, XG_ERR_UNSUPPORTED, "this type of number is not supported");
    }
}

/* Steps over a word if it comes next. */
static bool xg__npy_word(xg__cursor *c, const char *word)
{
    const size_t length = strlen(word);
    xg__cursor_peek(c);
    if ((size_t)(c->end - c->at) < length || memcmp(c->at, word, length) != 0) return false;
    c->at += length;
    return true;
}

/* Row-major or not. Column-major arrays are refused rather than read transposed. */
static void xg__npy_order(xg__cursor *c)
{
    if (xg__npy_word(c, "False")) return;
    if (!xg__npy_word(c, "True")) xg__cursor_fail(c, XG_ERR_FORMAT, "expected True or False");
    else xg__cursor_fail(c, XG_ERR_UNSUPPORTED, "the array is in Fortran order, its first axis the "
                         "fastest; save it again after numpy.ascontiguousarray");
}

/* (), (3,), (2, 3): a tuple of one needs its comma. */
static void xg__npy_shape(xg__cursor *c, xg__npy *npy)
{
    xg__extents e = xg__extents_none;
    xg__cursor_expect(c, '(');
    while (!xg__cursor_failed(c) && !xg__cursor_accept(c, ')')) {
        xg__extents_add(&e, xg__cursor_number(c), c);
        if (e.rank == 1 || xg__cursor_peek(c) != ')') xg__cursor_expect(c, ',');
    }
    if (!xg__cursor_failed(c) && !xg__extents_shape(&e, &npy->shape)) {
        xg__cursor_fail(c, XG_ERR_UNSUPPORTED, "only up to four axes of at least 1 are supported");
    }
}

/* The dict: three keys, each once, in any order. */
static void xg__npy_dict(xg__cursor *c, xg__npy *npy)
{
    static const char *const keys[3] = { "descr", "fortran_order", "shape" };
    int seen = 8;                          /* bit 3, "none of them", is never welcome            */
    xg__cursor_expect(c, '{');
    while (!xg__cursor_failed(c) && !xg__cursor_accept(c, '}')) {
        char key[16];
        int i = 0;
        xg__npy_string(c, key, sizeof key);
        while (i < 3 && strcmp(key, keys[i]) != 0) i++;
        if (seen & (1 << i)) xg__cursor_fail(c, XG_ERR_FORMAT, "an unknown or a second key");
        seen |= 1 << i;
        xg__cursor_expect(c, ':');
        if (i == 0) xg__npy_descr(c, npy);
        if (i == 1) xg__npy_order(c);
        if (i == 2) xg__npy_shape(c, npy);
        if (xg__cursor_peek(c) != '}') xg__cursor_expect(c, ',');
    }
    if (xg__cursor_peek(c) != -1) xg__cursor_fail(c, XG_ERR_FORMAT, "text after the dict");
    if (seen != 15) xg__cursor_fail(c, XG_ERR_FORMAT, "a key is missing");
}

/* What stands before the numbers. Version 1 has two bytes for the length of the dict, 2 and 3 have
 * four; 3 allows UTF-8 in the names of fields, of which there are none here. */
static void xg__npy_header(xg__source *s, xg__npy *npy, xg_error *error)
{
    unsigned char head[12], text[XG__NPY_HEADER];
    if (!xg__source_read(s, head, 8) || memcmp(head, "\x93NUMPY", 6) != 0) {
        xg__complain(error, XG_ERR_FORMAT, "this is no npy file");
        return;
    }
    if (head[6] < 1 || head[6] > 3 || head[7] != 0) {
        xg__complain(error, XG_ERR_UNSUPPORTED, "npy version %d.%d", head[6], head[7]);
        return;
    }
    const size_t size = head[6] == 1 ? 2 : 4;
    if (!xg__source_read(s, head + 8, size)) {
        xg__complain(error, XG_ERR_FORMAT, "the npy header ends early");
        return;
    }
    const uint64_t length = xg__load_bits(head + 8, size, false);
    if (length > sizeof text || !xg__source_read(s, text, (size_t)length)) {
        xg__complain(error, XG_ERR_FORMAT, "the length of the npy header is wrong");
        return;
    }
    xg__cursor c = { text, text, text + (size_t)length, error };
    xg__npy_dict(&c, npy);
}

/* Header first, then the numbers a block at a time, straight into the leaf. */
static xg_tensor *xg__npy_read(xg_tape *tape, xg__source *s, xg_error *error)
{
    xg__npy npy = { NULL, false, { 1, 1, 1, 1 } };
    xg__npy_header(s, &npy, error);
    if (error->code != XG_ERR_OK) return NULL;
    const size_t size = xg_shape_size(npy.shape), block = 512;
    if (s->left % npy.type->size != 0 || s->left / npy.type->size != size) {
        xg__complain(error, XG_ERR_FORMAT, "the shape asks for %.0f numbers of %d bytes, the file "
                     "has %.0f bytes left", (double)size, (int)npy.type->size, (double)s->left);
        return NULL;
    }
    xg_tensor *leaf = xg_leaf(tape, npy.shape, NULL);
    xg_real *out = xg_leaf_data(leaf);
    for (size_t i = 0; out && i < size; i += block) {
        unsigned char bytes[512 * 8];
        const size_t count = xg__min(block, size - i);
        if (!xg__source_read(s, bytes, count * npy.type->size)) {
            xg__complain(error, XG_ERR_IO, "reading failed");
            return NULL;
        }
        xg__decode(npy.type, npy.big_endian, bytes, out + i, count);
    }
    return leaf;
}

/* A failed tape answers every request for a leaf with poison. */
static xg_tensor *xg__npy_fail(xg_tape *tape, const char *where, const xg_error *error)
{
    xg_fail(tape, error->code, "npy '%.100s': %s", where, error->text);
    return xg_leaf(tape, xg_shape4(1, 1, 1, 1), NULL);
}

XG_API_DEF xg_tensor *xg_npy_parse(xg_tape *tape, const void *bytes, size_t count)
{
    xg_error error = { XG_ERR_OK, "" };
    xg__source s = xg__source_memory(bytes, count);
    xg_tensor *leaf = xg__npy_read(tape, &s, &error);
    return error.code == XG_ERR_OK ? leaf : xg__npy_fail(tape, "(memory)", &error);
}

#ifndef XG_NO_STDIO
XG_API_DEF xg_tensor *xg_npy_load(xg_tape *tape, const char *path)
{
    xg_error error = { XG_ERR_OK, "" };
    xg_tensor *leaf = NULL;
    xg__source s = xg__source_open(path, &error);
    if (error.code == XG_ERR_OK) leaf = xg__npy_read(tape, &s, &error);
    xg__source_close(&s);
    return error.code == XG_ERR_OK ? leaf : xg__npy_fail(tape, path ? path : "", &error);
}

/* Always four axes. Spaces fill the header so that the numbers start at a multiple of 64. */
XG_API_DEF xg_code xg_npy_save(xg_tensor *x, const char *path)
{
    char temporary[XG__PATH_MAX], dict[192];
    unsigned char head[10];
    xg_error error = { XG_ERR_OK, "" };
    xg_tape *tape = xg_tape_of(x);
    const xg_real *data = xg_data(x);
    const xg_shape s = xg_shape_of(x);
    if (!tape) return XG_ERR_ARGUMENT;
    if (xg_failed(tape)) return xg_tape_error(tape)->code;
    int length = snprintf(dict, sizeof dict, "{'descr': '<%s', 'fortran_order': False, "
                          "'shape': (%d, %d, %d, %d), }", xg__dtype_own()->npy, s.n, s.c, s.h, s.w);
    while ((10 + length + 1) % 64 != 0) dict[length++] = ' ';
    dict[length++] = '\n';
    xg__sink sink = xg__save_begin(path, temporary, &error);
    memcpy(head, "\x93NUMPY\x01\x00", 8);
    xg__store_bits(head + 8, (uint64_t)length, 2);
    xg__put(&sink, head, sizeof head);
    xg__put(&sink, dict, (size_t)length);
    xg__put_reals(&sink, data, xg_size(x));
    xg__save_end(&sink, path, temporary, &error);
    if (error.code != XG_ERR_OK) xg_fail(tape, error.code, "npy: %s", error.text);
    return error.code;
}
#endif

#endif /* after the kernels */

/* ----------------------------------------------------------------------------------------------
 * Licence: choose the public domain or MIT.
 *
 * A - Public domain (www.unlicense.org). This is free and unencumbered software released into the
 * public domain. Anyone is free to copy, modify, publish, use, compile, sell, or distribute this
 * software, either in source code form or as a compiled binary, for any purpose, commercial or
 * non-commercial, and by any means. In jurisdictions that recognize copyright laws, the author or
 * authors of this software dedicate any and all copyright interest in the software to the public
 * domain. We make this dedication for the benefit of the public at large and to the detriment of
 * our heirs and successors. We intend this dedication to be an overt act of relinquishment in
 * perpetuity of all present and future rights to this software under copyright law.
 *
 * B - MIT. Copyright (c) 2026 the xguide.h authors. Permission is hereby granted, free of charge,
 * to any person obtaining a copy of this software and associated documentation files (the
 * "Software"), to deal in the Software without restriction, including without limitation the
 * rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the
 * Software, and to permit persons to whom the Software is furnished to do so, subject to the
 * following conditions: The above copyright notice and this permission notice shall be included in
 * all copies or substantial portions of the Software.
 *
 * Either way: THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED,
 * INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE
 * AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM,
 * DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
 * OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
 *
 * Changes: 0.1.0 (2026-11) the first version. CHANGELOG.md tells more.
 */
