/* kit_chart.c - K9: line and bar charts in the style of the sheet. */
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "kit.h"

/* One panel's frame on the page, and how data become pixels in it. */
typedef struct frame {
    double left, top, right, bottom;          /* of the plot area, pixels                         */
    double x0, x1, y0, y1;                    /* data at its edges                                */
} frame;

/* Data to pixels. */
static double to_x(const frame *f, double x)
{
    return f->left + (x - f->x0) / (f->x1 - f->x0) * (f->right - f->left);
}

/* The same upwards, and held inside the frame: an outlier runs along the edge. */
static double to_y(const frame *f, double y)
{
    double t = (y - f->y0) / (f->y1 - f->y0);
    return f->bottom - fmin(fmax(t, 0), 1) * (f->bottom - f->top);
}

/* -------------------------------------------------------------------------------------- axes -- */

/* A round step (1, 2 or 5 times a power of ten) that cuts the range into about `parts`. */
static double round_step(double range, int parts)
{
    double raw = range / parts, power = pow(10, floor(log10(raw))), digit = raw / power;
    return power * (digit < 1.5 ? 1 : digit < 3.5 ? 2 : digit < 7.5 ? 5 : 10);
}

/* As many digits as the step needs, so that neighbouring ticks differ and line up. */
static void tick_text(double value, double step, bool percent, char out[32])
{
    double shown = percent ? 100 * value : value, shown_step = percent ? 100 * step : step;
    int digits = shown_step >= 0.999 ? 0 : (int)ceil(-log10(shown_step) - 1e-9);
    if (fabs(shown) < 1e-9 * shown_step) shown = 0;
    if (digits > 5 || fabs(shown) >= 1e6) snprintf(out, 32, "%.3g", shown);
    else snprintf(out, 32, "%.*f%s", digits, shown, percent ? " %" : "");
}

/* Horizontal lines carry the eye to the numbers; vertical ones would only be clutter. */
static void y_axis(kit_picture *page, const frame *f, const kit_panel *panel)
{
    double step = round_step(f->y1 - f->y0, 5);
    for (int i = 0; i < 40; i++) {
        double y = (ceil(f->y0 / step - 1e-9) + i) * step;
        char   text[32];
        if (y > f->y1 + 1e-9 * step) break;
        kit_draw_line(page, f->left, to_y(f, y), f->right, to_y(f, y), 1, KIT_FAINT);
        tick_text(y, step, panel->percent, text);
        kit_draw_text(page, f->left - 8, to_y(f, y) - 4, 8, KIT_RIGHT, KIT_SOFT, text);
    }
}

static void x_axis(kit_picture *page, const frame *f)
{
    double step = fmax(round_step(f->x1 - f->x0, 6), 0);
    for (int i = 0; i < 40; i++) {
        double x = (ceil(f->x0 / step - 1e-9) + i) * step;
        char   text[32];
        if (x > f->x1 + 1e-9 * step) break;
        kit_draw_line(page, to_x(f, x), f->bottom, to_x(f, x), f->bottom + 4, 1, KIT_SOFT);
        tick_text(x, step, false, text);
        kit_draw_text(page, to_x(f, x), f->bottom + 9, 8, KIT_CENTRE, KIT_SOFT, text);
    }
}

static void widen(double value, double *low, double *high)
{
    if (!isfinite(value)) return;
    *low = fmin(*low, value);
    *high = fmax(*high, value);
}

/* The ranges of the axes: the panel's own, or those of the data and a little more. */
static void find_ranges(const kit_panel *panel, frame *f)
{
    f->x0 = f->y0 = DBL_MAX;
    f->x1 = f->y1 = -DBL_MAX;
    for (int i = 0; i < panel->lines; i++) {
        const kit_line *line = &panel->line[i];
        for (int k = 0; k < line->count; k++) {
            double spread = line->spread != NULL && isfinite(line->spread[k]) ? line->spread[k] : 0;
            if (!isfinite(line->y[k])) continue;
            widen(line->x != NULL ? line->x[k] : k, &f->x0, &f->x1);
            widen(line->y[k] - spread, &f->y0, &f->y1);
            widen(line->y[k] + spread, &f->y0, &f->y1);
        }
    }
    for (int i = 0; i < panel->groups * panel->bars; i++) {
        double spread = panel->bar_spread != NULL ? panel->bar_spread[i] : 0;
        widen(0, &f->y0, &f->y1);                       /* bars stand on zero */
        widen(panel->bar[i] + (isfinite(spread) ? spread : 0), &f->y0, &f->y1);
    }
    if (f->x0 > f->x1) { f->x0 = 0; f->x1 = 1; }
    if (f->x1 - f->x0 <= 0) { f->x0 -= 0.5; f->x1 += 0.5; }
    if (f->y0 > f->y1) { f->y0 = 0; f->y1 = 1; }
    double room = f->y1 - f->y0 > 0 ? 0.06 * (f->y1 - f->y0) : fabs(f->y1) * 0.1 + 0.1;
    if (panel->groups == 0) f->y0 -= room;
    f->y1 += room;
    if (panel->y_max > panel->y_min) {
        f->y0 = panel->y_min;
        f->y1 = panel->y_max;
    }
}

/* ------------------------------------------------------------------------------------- lines -- */

/* A band of the spread, column by column, under the lines. */
static void draw_band(kit_picture *page, const frame *f, const kit_line *line)
{
    if (line->spread == NULL) return;
    for (int k = 0; k + 1 < line->count; k++) {
        double xa = to_x(f, line->x != NULL ? line->x[k] : k);
        double xb = to_x(f, line->x != NULL ? line->x[k + 1] : k + 1);
        double sum = line->y[k] + line->y[k + 1] + line->spread[k] + line->spread[k + 1];
        if (!isfinite(sum) || !(xb > xa)) continue;
        for (int x = (int)xa; x < (int)xb; x++) {
            double t = (x + 0.5 - xa) / (xb - xa);
            double y = (1 - t) * line->y[k] + t * line->y[k + 1];
            double half = (1 - t) * line->spread[k] + t * line->spread[k + 1];
            kit_draw_rect(page, x, (int)to_y(f, y + half), x + 1, (int)to_y(f, y - half),
                          kit_colour(line->colour), 0.18);
        }
    }
}

/* Draws from a to b, or only dashes of it; `along` carries the pattern over corners. */
static void draw_part(kit_picture *page, const double a[2], const double b[2], bool dashed,
                      double *along, unsigned colour)
{
    double length = hypot(b[0] - a[0], b[1] - a[1]), at = 0;
    while (at < length) {
        double phase = dashed ? fmod(*along, 10) : 0, next = dashed ? (phase < 6 ? 6 : 10) : 1e9;
        double end = fmin(length, at + next - phase + 1e-6);
        if (phase < 6) {
            double s = at / length, t = end / length;
            kit_draw_line(page, a[0] + s * (b[0] - a[0]), a[1] + s * (b[1] - a[1]),
                          a[0] + t * (b[0] - a[0]), a[1] + t * (b[1] - a[1]), 2, colour);
        }
        *along += end - at;
        at = end;
    }
}

/* Dots mark the points while there are few; NaN leaves a gap. */
static void draw_line(kit_picture *page, const frame *f, const kit_line *line)
{
    double before[2] = { 0, 0 }, along = 0;
    bool   joined = false;
    for (int k = 0; k < line->count; k++) {
        double x = line->x != NULL ? line->x[k] : k;
        if (!isfinite(line->y[k]) || !isfinite(x)) {
            joined = false;
            continue;
        }
        double now[2] = { to_x(f, x), to_y(f, line->y[k]) };
        if (joined) draw_part(page, before, now, line->dashed, &along, kit_colour(line->colour));
        if (line->count <= 30) kit_draw_disc(page, now[0], now[1], 2.6, kit_colour(line->colour));
        before[0] = now[0];
        before[1] = now[1];
        joined = true;
    }
}

/* -------------------------------------------------------------------------------------- bars -- */

/* The value stands over each bar: nobody has to measure. */
static void draw_bars(kit_picture *page, const frame *f, const kit_panel *panel)
{
    double group_w = (f->right - f->left) / panel->groups, bar_w = 0.76 * group_w / panel->bars;
    for (int g = 0; g < panel->groups; g++) {
        double left = f->left + g * group_w + 0.12 * group_w;
        for (int b = 0; b < panel->bars; b++) {
            double value = panel->bar[g * panel->bars + b];
            if (!isfinite(value)) continue;
            double x0 = left + b * bar_w, x1 = x0 + bar_w - 2, middle = 0.5 * (x0 + x1);
            double y = to_y(f, value), zero = to_y(f, fmax(0, f->y0));
            kit_draw_rect(page, (int)x0, (int)fmin(y, zero), (int)x1, (int)fmax(y, zero),
                          kit_colour(b), 0.9);
            double spread = panel->bar_spread != NULL ? panel->bar_spread[g * panel->bars + b] : 0;
            double top = fmin(y, zero);
            if (isfinite(spread) && spread > 0) {
                top = fmin(top, to_y(f, value + spread));
                kit_draw_line(page, middle, to_y(f, value - spread), middle,
                              to_y(f, value + spread), 1.5, KIT_INK);
            }
            char text[32];
            snprintf(text, sizeof text, panel->percent ? "%.1f" : "%.3g",
                     panel->percent ? 100 * value : value);
            kit_draw_text(page, middle, top - 12, 7, KIT_CENTRE, KIT_INK, text);
        }
        kit_draw_text_in(page, f->left + (g + 0.5) * group_w, f->bottom + 9, 8, KIT_CENTRE, KIT_INK,
                         panel->label[g], group_w - 4);
    }
}

/* -------------------------------------------------------------------------------------- page -- */

static void draw_panel(kit_picture *page, const kit_panel *panel, int x, int y, int w, int h)
{
    frame f;
    memset(&f, 0, sizeof f);
    f.left = x + 52;
    f.right = x + w - 16;
    f.top = y + 44;
    f.bottom = y + h - 40;
    find_ranges(panel, &f);
    if (panel->title != NULL) {
        kit_draw_text_in(page, f.left, y + 4, 11, KIT_LEFT, KIT_INK, panel->title,
                         f.right - f.left);
    }
    if (panel->y_label != NULL) {           /* level, over the axis: easier to read than upright */
        kit_draw_text(page, f.left, y + 26, 8, KIT_LEFT, KIT_SOFT, panel->y_label);
    }
    if (panel->x_label != NULL) {
        kit_draw_text(page, 0.5 * (f.left + f.right), f.bottom + 26, 8, KIT_CENTRE, KIT_SOFT,
                      panel->x_label);
    }
    y_axis(page, &f, panel);
    if (panel->groups > 0) draw_bars(page, &f, panel);
    else x_axis(page, &f);
    for (int i = 0; i < panel->lines; i++) draw_band(page, &f, &panel->line[i]);
    for (int i = 0; i < panel->lines; i++) draw_line(page, &f, &panel->line[i]);
    kit_draw_line(page, f.left, f.bottom, f.right, f.bottom, 1.5, KIT_INK);
}

/* One legend for the page: the names of the first panel that has some. Drawn from x on. */
static void draw_legend(kit_picture *page, const kit_panel *panel, int panels, double x, double y)
{
    for (int i = 0; i < panels; i++) {
        int count = panel[i].groups > 0 ? panel[i].bars : panel[i].lines, named = 0;
        for (int k = 0; k < count; k++) {
            const kit_line *line = panel[i].groups > 0 ? NULL : &panel[i].line[k];
            const char *name = line != NULL ? line->name
                             : panel[i].series != NULL ? panel[i].series[k] : NULL;
            if (name == NULL) continue;
            double a[2] = { x, y + 5 }, b[2] = { x + 22, y + 5 }, along = 0;
            unsigned colour = kit_colour(line != NULL ? line->colour : k);
            if (line != NULL) draw_part(page, a, b, line->dashed, &along, colour);
            else kit_draw_rect(page, (int)x + 8, (int)y, (int)x + 20, (int)y + 10, colour, 0.9);
            kit_draw_text(page, x + 28, y + 1, 9, KIT_LEFT, KIT_INK, name);
            x += 28 + kit_text_width(name, 9) + 24;
            named++;
        }
        if (named > 0) return;
    }
}

bool kit_chart_draw(const char *title, const kit_panel *panel, int panels, int width, int height,
                    kit_picture *out, xg_error *error)
{
    memset(out, 0, sizeof *out);
    if (width == 0) width = 420;
    if (height == 0) height = 300;
    if (panels < 1 || panels > 20 || width < 160 || height < 140 || width > 4000 || height > 4000) {
        return kit_fail(error, XG_ERR_ARGUMENT, "a chart has 1 to 20 panels of 160 x 140 pixels or "
                        "more");
    }
    int margin = 20, top = margin + (title != NULL ? 34 : 0);
    if (!kit_picture_new(out, panels * width + 2 * margin, top + height + 34 + margin, KIT_WHITE,
                         error)) {
        return false;
    }
    if (title != NULL) kit_draw_text(out, margin, margin, 15, KIT_LEFT, KIT_INK, title);
    for (int i = 0; i < panels; i++) {
        draw_panel(out, &panel[i], margin + i * width, top, width, height);
    }
    draw_legend(out, panel, panels, margin + 52, top + height + 10);
    return true;
}

bool kit_chart_save(const char *title, const kit_panel *panel, int panels, const char *path,
                    xg_error *error)
{
    kit_picture page;
    if (!kit_chart_draw(title, panel, panels, 0, 0, &page, error)) return false;
    bool fine = kit_picture_save(&page, path, error);
    kit_picture_free(&page);
    return fine;
}
