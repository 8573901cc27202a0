/* kit_sheet.c - K8: the heat-map sheet, a page that shows where a network looked. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kit.h"

#define BOX_COLOUR 0x00b050u

/* Where things stand on the page, in pixels. */
typedef struct layout {
    int margin, gap;          /* around the page, between cells                                   */
    int left, top;            /* of the first cell                                                */
    int cell;                 /* longer side of a picture                                         */
    int caption;              /* height under a cell                                              */
    int cell_h;               /* height of the cells of all rows: that of the tallest             */
    int w, h;                 /* of the page                                                      */
} layout;

/* ----------------------------------------------------------------------------------- colours -- */

/* From a to b, channel by channel. */
static unsigned mix(unsigned a, unsigned b, double t)
{
    unsigned out = 0;
    for (int shift = 0; shift <= 16; shift += 8) {
        double from = (double)(a >> shift & 255), to = (double)(b >> shift & 255);
        out |= (unsigned)(from + t * (to - from) + 0.5) << shift;
    }
    return out;
}

/* Two ramps that meet in near-white; each passes a clear middle tone, so that weak is told from
 * strong in print and by colour-blind eyes. */
unsigned kit_diverging(double t)
{
    static const unsigned cold[3] = { 0xf7f7f7, 0x5aa2ce, 0x0d3f8a };
    static const unsigned warm[3] = { 0xf7f7f7, 0xf4764f, 0xa50f1e };
    double size = fabs(t);
    if (!(size > 0)) return cold[0];
    const unsigned *side = t < 0 ? cold : warm;
    if (size >= 1) return side[2];
    return size < 0.5 ? mix(side[0], side[1], 2 * size) : mix(side[1], side[2], 2 * size - 1);
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y ? 1 : 0;
}

/* The magnitude that is shown at full strength: exceeded by one value in 200 only, so that a single
 * pixel does not make the rest invisible. NaN counts as zero. */
static bool map_scale(const kit_map *map, double *scale, xg_error *error)
{
    size_t  count = (size_t)map->h * (size_t)map->w;
    double *size = (double *)malloc(count * sizeof *size);
    if (size == NULL) return kit_fail(error, XG_ERR_MEMORY, "out of memory for a heat map");
    for (size_t i = 0; i < count; i++) {
        double value = fabs((double)map->value[i]);
        size[i] = value > 0 ? value : 0;
    }
    qsort(size, count, sizeof *size, ascending);
    *scale = size[count - 1 - count / 200];
    if (!(*scale > 0)) *scale = size[count - 1];
    free(size);
    return true;
}

/* --------------------------------------------------------------------------------- one cell --- */

/* The map at a point given as fractions of its extents: bilinear, half-pixel centres. */
static double sample(const kit_map *map, double fx, double fy)
{
    double x = fmin(fmax(fx * map->w - 0.5, 0), map->w - 1);
    double y = fmin(fmax(fy * map->h - 0.5, 0), map->h - 1);
    int x0 = (int)x, y0 = (int)y;
    int x1 = x0 + 1 < map->w ? x0 + 1 : x0, y1 = y0 + 1 < map->h ? y0 + 1 : y0;
    const xg_real *v = map->value;
    double tx = x - x0, ty = y - y0;
    double top = (1 - tx) * (double)v[y0 * map->w + x0] + tx * (double)v[y0 * map->w + x1];
    double low = (1 - tx) * (double)v[y1 * map->w + x0] + tx * (double)v[y1 * map->w + x1];
    return (1 - ty) * top + ty * low;
}

/* A pale grey copy of the picture under the map's colours. */
static void overlay(kit_picture *cell, const kit_map *map, double scale, double strength)
{
    for (int y = 0; y < cell->h; y++) {
        for (int x = 0; x < cell->w; x++) {
            unsigned char *rgb = cell->rgb + 3 * ((size_t)y * (size_t)cell->w + (size_t)x);
            double grey = 0.30 * rgb[0] + 0.59 * rgb[1] + 0.11 * rgb[2];
            for (int c = 0; c < 3; c++) rgb[c] = (unsigned char)(145 + 0.40 * grey);
            double t = sample(map, (x + 0.5) / cell->w, (y + 0.5) / cell->h) / scale;
            if (!(fabs(t) > 0)) continue;
            double size = fmin(fabs(t), 1);
            kit_draw_pixel(cell, x, y, kit_diverging(t), strength * pow(size, 0.7));
        }
    }
}

/* The picture at the cell's size. Few large pixels stay sharp, photographs are filtered. */
static bool enlarge(const kit_picture *in, int w, int h, kit_picture *out, xg_error *error)
{
    if (in->w * 3 > w) return kit_picture_resize(in, w, h, out, error);
    if (!kit_picture_new(out, w, h, KIT_WHITE, error)) return false;
    for (int y = 0; y < h; y++) {
        for (int x = 0; x < w; x++) {
            size_t from = (size_t)(y * in->h / h) * (size_t)in->w + (size_t)(x * in->w / w);
            memcpy(out->rgb + 3 * ((size_t)y * (size_t)w + (size_t)x), in->rgb + 3 * from, 3);
        }
    }
    return true;
}

static void outline_boxes(kit_picture *cell, const kit_sheet_row *row)
{
    double sx = (double)cell->w / row->picture->w, sy = (double)cell->h / row->picture->h;
    for (int pass = 0; pass < 2; pass++) {      /* a white rim first: it shows on every ground */
        for (int i = 0; i < row->boxes; i++) {
            xg_box b = row->box[i];
            double x0 = fmax(b.x0 * sx, 1.5), x1 = fmin(b.x1 * sx, cell->w - 1.5);
            double y0 = fmax(b.y0 * sy, 1.5), y1 = fmin(b.y1 * sy, cell->h - 1.5);
            if (x1 <= x0 || y1 <= y0) continue;
            kit_draw_frame(cell, x0, y0, x1, y1, pass == 0 ? 4.5 : 2.2,
                           pass == 0 ? KIT_WHITE : BOX_COLOUR);
        }
    }
}

/* The extents at which a picture fills a cell, its proportions kept. */
static void fit(const kit_picture *picture, int cell, int *w, int *h)
{
    double scale = (double)cell / (picture->w > picture->h ? picture->w : picture->h);
    *w = (int)fmax(1, picture->w * scale + 0.5);
    *h = (int)fmax(1, picture->h * scale + 0.5);
}

/* Draws the picture (map NULL) or the picture under a map at (x,y), with its caption below. */
static bool draw_cell(const kit_sheet *sheet, const layout *l, const kit_sheet_row *row,
                      const kit_map *map, const char *caption, int x, int y, kit_picture *page,
                      xg_error *error)
{
    if (map != NULL && map->value == NULL) return true;
    int    w, h;
    double scale = 0;
    kit_picture cell;
    fit(row->picture, l->cell, &w, &h);
    if (map != NULL && !map_scale(map, &scale, error)) return false;
    if (!enlarge(row->picture, w, h, &cell, error)) return false;
    if (map != NULL) overlay(&cell, map, scale, sheet->strength > 0 ? sheet->strength : 0.85);
    outline_boxes(&cell, row);
    int left = x + (l->cell - w) / 2, top = y + (l->cell_h - h) / 2;
    kit_draw_picture(page, &cell, left, top);
    kit_draw_frame(page, left, top, left + w, top + h, 1, 0x999999u);
    kit_picture_free(&cell);
    if (caption != NULL) {
        kit_draw_text_in(page, x + 0.5 * l->cell, top + h + 7, 9, KIT_CENTRE, KIT_INK, caption,
                         l->cell);
    }
    return true;
}

/* ------------------------------------------------------------------------------------- page --- */

/* Calls for each line of a text: draws it when page is not NULL; returns the widest and counts. */
static double lines_of(kit_picture *page, double x, double y, double size, const char *text,
                       int *lines)
{
    double widest = 0;
    *lines = 0;
    while (text != NULL && *text != '\0') {
        char   line[128];
        size_t length = strcspn(text, "\n");
        size_t copied = length < sizeof line - 1 ? length : sizeof line - 1;
        memcpy(line, text, copied);
        line[copied] = '\0';
        if (page != NULL) {
            kit_draw_text(page, x, y + *lines * size * 1.7, size, KIT_LEFT, KIT_INK, line);
        }
        widest = fmax(widest, kit_text_width(line, size));
        ++*lines;
        text += length + (text[length] == '\n');
    }
    return widest;
}

/* Everything that depends on the longest text or the tallest picture is found before drawing. */
static layout arrange(const kit_sheet *sheet)
{
    layout l;
    int lines;
    double titles = 0;
    bool captions = false;
    memset(&l, 0, sizeof l);
    l.margin = 24;
    l.gap = 14;
    l.cell = sheet->cell == 0 ? 200 : sheet->cell < 160 ? 160 : sheet->cell;
    for (int r = 0; r < sheet->rows; r++) {
        const kit_sheet_row *row = &sheet->row[r];
        int w, h;
        fit(row->picture, l.cell, &w, &h);
        if (h > l.cell_h) l.cell_h = h;
        titles = fmax(titles, lines_of(NULL, 0, 0, 10, row->title, &lines));
        captions = captions || row->caption != NULL;
        for (int c = 0; c < sheet->columns; c++) captions = captions || row->map[c].caption != NULL;
    }
    l.caption = captions ? 22 : 0;
    l.left = l.margin + (titles > 0 ? (int)titles + 16 : 0);
    l.top = l.margin + (sheet->title != NULL ? 34 : 0) + (sheet->note != NULL ? 20 : 0) + 22;
    l.w = l.left + (sheet->columns + 1) * (l.cell + l.gap) - l.gap + l.margin;
    double widest = fmax(sheet->title != NULL ? kit_text_width(sheet->title, 15) : 0,
                         sheet->note != NULL ? kit_text_width(sheet->note, 9) : 0);
    l.w = (int)fmax(fmax(l.w, widest + 2 * l.margin), 560);
    l.h = l.top + sheet->rows * (l.cell_h + l.caption + l.gap) + 44 + l.margin;
    return l;
}

/* The colour bar, and what the green frame means, at the foot of the page. */
static void legend(kit_picture *page, const layout *l, bool boxes)
{
    int width = 250, height = 12, y = l->h - l->margin - 30;
    int x = l->left;
    for (int i = 0; i < width; i++) {
        double t = 2.0 * i / (width - 1) - 1;
        kit_draw_rect(page, x + i, y, x + i + 1, y + height, kit_diverging(t), 1);
    }
    kit_draw_frame(page, x, y, x + width, y + height, 1, 0x999999u);
    kit_draw_text(page, x, y + height + 7, 8, KIT_LEFT, KIT_SOFT, "against");
    kit_draw_text(page, x + 0.5 * width, y + height + 7, 8, KIT_CENTRE, KIT_SOFT, "no effect");
    kit_draw_text(page, x + width, y + height + 7, 8, KIT_RIGHT, KIT_SOFT, "for the class");
    kit_draw_text(page, x + width + 24, y + 2, 8, KIT_LEFT, KIT_SOFT,
                  "colours: each map on its own scale");
    if (boxes) {
        int left = x + width + 24;
        kit_draw_frame(page, left + 1, y + height + 6, left + 15, y + height + 15, 2, BOX_COLOUR);
        kit_draw_text(page, left + 22, y + height + 7, 8, KIT_LEFT, KIT_SOFT,
                      "where the evidence should be");
    }
}

/* Row titles stand in the middle of their row, also when they have several lines. */
static bool draw_rows(const kit_sheet *sheet, const layout *l, kit_picture *page, xg_error *error)
{
    for (int r = 0; r < sheet->rows; r++) {
        const kit_sheet_row *row = &sheet->row[r];
        int lines, y = l->top + r * (l->cell_h + l->caption + l->gap);
        lines_of(NULL, 0, 0, 10, row->title, &lines);
        lines_of(page, l->margin, y + 0.5 * (l->cell_h - 17 * lines + 7), 10, row->title, &lines);
        for (int c = 0; c <= sheet->columns; c++) {
            const kit_map *map = c > 0 ? &row->map[c - 1] : NULL;
            const char *caption = map != NULL ? map->caption : row->caption;
            int x = l->left + c * (l->cell + l->gap);
            if (!draw_cell(sheet, l, row, map, caption, x, y, page, error)) return false;
        }
    }
    return true;
}

/* Before anything is drawn: what would otherwise crash far from its cause. */
static bool check(const kit_sheet *sheet, xg_error *error)
{
    for (int r = 0; r < sheet->rows; r++) {
        const kit_sheet_row *row = &sheet->row[r];
        if (row->picture == NULL || row->picture->rgb == NULL) {
            return kit_fail(error, XG_ERR_ARGUMENT, "row %d of the sheet has no picture", r);
        }
        for (int c = 0; c < sheet->columns; c++) {
            if (row->map[c].value != NULL && (row->map[c].h < 1 || row->map[c].w < 1)) {
                return kit_fail(error, XG_ERR_ARGUMENT, "map %d of row %d has no extents", c, r);
            }
        }
    }
    if (sheet->rows < 1 || sheet->rows > 500 || sheet->columns < 0 || sheet->columns > 50) {
        return kit_fail(error, XG_ERR_ARGUMENT, "a sheet has 1 to 500 rows and up to 50 columns");
    }
    return true;
}

bool kit_sheet_draw(const kit_sheet *sheet, kit_picture *out, xg_error *error)
{
    memset(out, 0, sizeof *out);
    if (!check(sheet, error)) return false;
    layout l = arrange(sheet);
    if (!kit_picture_new(out, l.w, l.h, KIT_WHITE, error)) return false;
    int y = l.margin;
    if (sheet->title != NULL) {
        kit_draw_text(out, l.margin, y, 15, KIT_LEFT, KIT_INK, sheet->title);
        y += 34;
    }
    if (sheet->note != NULL) {
        kit_draw_text(out, l.margin, y - 6, 9, KIT_LEFT, KIT_SOFT, sheet->note);
    }
    bool boxes = false;
    for (int r = 0; r < sheet->rows; r++) boxes = boxes || sheet->row[r].boxes > 0;
    for (int c = 0; c <= sheet->columns; c++) {
        double middle = l.left + c * (l.cell + l.gap) + 0.5 * l.cell;
        kit_draw_text_in(out, middle, l.top - 17, 10, KIT_CENTRE, KIT_INK,
                         c == 0 ? "input" : sheet->column[c - 1], l.cell);
    }
    legend(out, &l, boxes);
    if (!draw_rows(sheet, &l, out, error)) {
        kit_picture_free(out);
        return false;
    }
    return true;
}

bool kit_sheet_save(const kit_sheet *sheet, const char *path, xg_error *error)
{
    kit_picture page;
    if (!kit_sheet_draw(sheet, &page, error)) return false;
    bool fine = kit_picture_save(&page, path, error);
    kit_picture_free(&page);
    return fine;
}
