/* hello.c - a function, its derivative, and the derivative of that, from one file.
 *
 *     cc -I.. hello.c -o hello -lm && ./hello
 *
 * Prints x^2 e^x and its first and second derivative beside the closed forms. A derivative is made
 * of ordinary operations, so it can be differentiated again. */
#define XG_IMPLEMENTATION
#include "xguide.h"

#include <math.h>
#include <stdio.h>

static xg_tensor *f(xg_tensor *x) { return xg_mul(xg_square(x), xg_exp(x)); }

int main(void)
{
    const xg_real at[4] = { -1, 0, (xg_real)0.5, 2 };
    xg_tape *tape = xg_tape_new(NULL);
    if (!tape) return 1;
    xg_tensor *x = xg_leaf(tape, xg_shape4(1, 1, 1, 4), at);

    xg_tensor *y = f(x);
    xg_tensor *dy = xg_grad(y, x);        /* of the sum, so each element gets its own           */
    xg_tensor *ddy = xg_grad(dy, x);      /* the same again                                     */

    double worst = 0;
    printf("%6s %10s %10s %10s   (x + 2)x e^x, (x^2 + 4x + 2) e^x\n", "x", "f", "f'", "f''");
    for (int i = 0; i < 4 && !xg_failed(tape); i++) {
        double v = (double)at[i], e = exp(v), first = (v + 2) * v * e;
        double second = (v * v + 4 * v + 2) * e;
        printf("%6.2f %10.5f %10.5f %10.5f   %10.5f %10.5f\n", v, (double)xg_data(y)[i],
               (double)xg_data(dy)[i], (double)xg_data(ddy)[i], first, second);
        double off = fabs((double)xg_data(dy)[i] - first) + fabs((double)xg_data(ddy)[i] - second);
        worst = fmax(worst, off / (1 + fabs(second)));
    }
    if (xg_failed(tape)) printf("%s\n", xg_tape_error(tape)->text);
    bool fine = !xg_failed(tape) && worst < 1e-5;
    xg_tape_free(tape);
    return fine ? 0 : 1;
}
