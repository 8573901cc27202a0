/* kit_draw.c - K7: shapes with soft edges, and text from letters that can be read in the source. */
#include <math.h>
#include <string.h>

#include "kit.h"

/* ----------------------------------------------------------------------------------- colours -- */

unsigned kit_colour(int i)
{
    /* Blue, orange, green, magenta, sky, brown, grey, black: also for colour-blind eyes. */
    static const unsigned colour[8] = {
        0x1f6fb4, 0xe07b00, 0x1a9850, 0xc0398f, 0x4bb3e0, 0x8c564b, 0x8a8a8a, 0x222222
    };
    return colour[(unsigned)i % 8];
}

/* Everything is drawn through here: clipping and blending are decided once. */
void kit_draw_pixel(kit_picture *p, int x, int y, unsigned colour, double opacity)
{
    if (x < 0 || y < 0 || x >= p->w || y >= p->h || !(opacity > 0)) return;
    unsigned char *at = p->rgb + 3 * ((size_t)y * (size_t)p->w + (size_t)x);
    double weight = opacity > 1 ? 1 : opacity;
    for (int c = 0; c < 3; c++) {
        double over = (double)(colour >> (16 - 8 * c) & 255);
        at[c] = (unsigned char)(at[c] + weight * (over - at[c]) + 0.5);
    }
}

/* ------------------------------------------------------------------------------------ shapes -- */

/* The whole pixels that a range of coordinates touches, clipped to [0,limit). */
static int first_pixel(double from) { return from <= 0 ? 0 : from > 1e6 ? 1000000 : (int)from; }

static int end_pixel(double to, int limit)
{
    return to <= 0 ? 0 : to >= limit ? limit : (int)ceil(to);
}

void kit_draw_rect(kit_picture *p, int x0, int y0, int x1, int y1, unsigned colour, double opacity)
{
    for (int y = first_pixel(y0); y < end_pixel(y1, p->h); y++) {
        for (int x = first_pixel(x0); x < end_pixel(x1, p->w); x++) {
            kit_draw_pixel(p, x, y, colour, opacity);
        }
    }
}

/* From a point to the nearest point of a segment (x0 y0 x1 y1). */
static double distance_to_segment(double x, double y, const double s[4])
{
    double dx = s[2] - s[0], dy = s[3] - s[1], length = dx * dx + dy * dy;
    double t = length > 0 ? ((x - s[0]) * dx + (y - s[1]) * dy) / length : 0;
    t = t < 0 ? 0 : t > 1 ? 1 : t;
    double ex = x - s[0] - t * dx, ey = y - s[1] - t * dy;
    return sqrt(ex * ex + ey * ey);
}

/* All segments as one stroke of the given half width: a pixel is covered by its nearest segment, so
 * that strokes that meet do not darken each other. */
static void stroke(kit_picture *p, double (*segment)[4], int count, double half, unsigned colour)
{
    if (count < 1) return;
    double x0 = 1e9, y0 = 1e9, x1 = -1e9, y1 = -1e9;
    for (int i = 0; i < count; i++) {
        const double *s = segment[i];
        x0 = fmin(x0, fmin(s[0], s[2]));
        y0 = fmin(y0, fmin(s[1], s[3]));
        x1 = fmax(x1, fmax(s[0], s[2]));
        y1 = fmax(y1, fmax(s[1], s[3]));
    }
    for (int y = first_pixel(y0 - half - 1); y < end_pixel(y1 + half + 1, p->h); y++) {
        for (int x = first_pixel(x0 - half - 1); x < end_pixel(x1 + half + 1, p->w); x++) {
            double nearest = 1e9;
            for (int i = 0; i < count; i++) {
                nearest = fmin(nearest, distance_to_segment(x + 0.5, y + 0.5, segment[i]));
            }
            kit_draw_pixel(p, x, y, colour, half + 0.5 - nearest);
        }
    }
}

void kit_draw_line(kit_picture *p, double x0, double y0, double x1, double y1, double thick,
                   unsigned colour)
{
    double segment[1][4] = { { x0, y0, x1, y1 } };
    stroke(p, segment, 1, 0.5 * thick, colour);
}

/* A line without length has round ends: a disc. */
void kit_draw_disc(kit_picture *p, double x, double y, double radius, unsigned colour)
{
    kit_draw_line(p, x, y, x, y, 2 * radius, colour);
}

void kit_draw_frame(kit_picture *p, double x0, double y0, double x1, double y1, double thick,
                    unsigned colour)
{
    double segment[4][4] = {
        { x0, y0, x1, y0 }, { x1, y0, x1, y1 }, { x1, y1, x0, y1 }, { x0, y1, x0, y0 }
    };
    for (int i = 0; i < 4; i++) stroke(p, &segment[i], 1, 0.5 * thick, colour);
}

void kit_draw_picture(kit_picture *p, const kit_picture *stamp, int x, int y)
{
    int x0 = x < 0 ? -x : 0, x1 = stamp->w > p->w - x ? p->w - x : stamp->w;
    for (int row = 0; row < stamp->h && x1 > x0; row++) {
        if (y + row < 0 || y + row >= p->h) continue;
        memcpy(p->rgb + 3 * ((size_t)(y + row) * (size_t)p->w + (size_t)(x + x0)),
               stamp->rgb + 3 * ((size_t)row * (size_t)stamp->w + (size_t)x0),
               3 * (size_t)(x1 - x0));
    }
}

/* -------------------------------------------------------------------------------------- text -- */

/* ASCII 32 to 127, twelve letters side by side, each 5 wide and 9 high: seven rows for capitals,
 * two below the line. */
#define FONT_W 5
#define FONT_H 9
#define FONT_BAND 12
#define FONT_CAPS 7

static const char *const font[] = {
    /* from ' ' */
    "..... ..#.. .#.#. .#.#. ..#.. ##... .##.. ..#.. ...#. .#... ..... ..... ",
    "..... ..#.. .#.#. .#.#. .#### ##..# #..#. ..#.. ..#.. ..#.. ..#.. ..... ",
    "..... ..#.. .#.#. ##### #.#.. ...#. #.#.. ..... .#... ...#. #.#.# ..#.. ",
    "..... ..#.. ..... .#.#. .###. ..#.. .#... ..... .#... ...#. .###. ..#.. ",
    "..... ..#.. ..... ##### ..#.# .#... #.#.# ..... .#... ...#. #.#.# ##### ",
    "..... ..... ..... .#.#. ####. #..## #..#. ..... .#... ...#. ..#.. ..#.. ",
    "..... ..#.. ..... .#.#. ..#.. ...## .##.# ..... .#... ...#. ..... ..#.. ",
    "..... ..... ..... ..... ..... ..... ..... ..... ..#.. ..#.. ..... ..... ",
    "..... ..... ..... ..... ..... ..... ..... ..... ...#. .#... ..... ..... ",
    /* from ',' */
    "..... ..... ..... ....# .###. ..#.. .###. .###. ...#. ##### ..##. ##### ",
    "..... ..... ..... ....# #...# .##.. #...# #...# ..##. #.... .#... ....# ",
    "..... ..... ..... ...#. #...# ..#.. ....# ....# .#.#. ####. #.... ...#. ",
    "..... ..... ..... ..#.. #...# ..#.. ...#. ..##. #..#. ....# ####. ..#.. ",
    "..... ####. ..... .#... #...# ..#.. ..#.. ....# ##### ....# #...# .#... ",
    "..... ..... ..... #.... #...# ..#.. .#... #...# ...#. #...# #...# .#... ",
    "..#.. ..... ..#.. #.... .###. .###. ##### .###. ...#. .###. .###. .#... ",
    "..#.. ..... ..... ..... ..... ..... ..... ..... ..... ..... ..... ..... ",
    ".#... ..... ..... ..... ..... ..... ..... ..... ..... ..... ..... ..... ",
    /* from '8' */
    ".###. .###. ..... ..... ..... ..... ..... .###. .###. ..#.. ####. .###. ",
    "#...# #...# ..... ..... ...#. ..... .#... #...# #...# .#.#. #...# #...# ",
    "#...# #...# ..#.. ..#.. ..#.. ..... ..#.. ....# #.### #...# #...# #.... ",
    ".###. .#### ..... ..... .#... ##### ...#. ...#. #.#.# #...# ####. #.... ",
    "#...# ....# ..... ..... ..#.. ..... ..#.. ..#.. #.### ##### #...# #.... ",
    "#...# ...#. ..... ..... ...#. ##### .#... ..... #.... #...# #...# #...# ",
    ".###. .##.. ..#.. ..#.. ..... ..... ..... ..#.. .###. #...# ####. .###. ",
    "..... ..... ..... ..#.. ..... ..... ..... ..... ..... ..... ..... ..... ",
    "..... ..... ..... .#... ..... ..... ..... ..... ..... ..... ..... ..... ",
    /* from 'D' */
    "###.. ##### ##### .###. #...# ..#.. ....# #...# #.... #...# #...# .###. ",
    "#..#. #.... #.... #...# #...# ..#.. ....# #..#. #.... ##.## #...# #...# ",
    "#...# #.... #.... #.... #...# ..#.. ....# #.#.. #.... #.#.# ##..# #...# ",
    "#...# ####. ####. #..## ##### ..#.. ....# ##... #.... #.#.# #.#.# #...# ",
    "#...# #.... #.... #...# #...# ..#.. #...# #.#.. #.... #...# #..## #...# ",
    "#..#. #.... #.... #...# #...# ..#.. #...# #..#. #.... #...# #...# #...# ",
    "###.. ##### #.... .###. #...# ..#.. .###. #...# ##### #...# #...# .###. ",
    "..... ..... ..... ..... ..... ..... ..... ..... ..... ..... ..... ..... ",
    "..... ..... ..... ..... ..... ..... ..... ..... ..... ..... ..... ..... ",
    /* from 'P' */
    "####. .###. ####. .###. ##### #...# #...# #...# #...# #...# ##### .##.. ",
    "#...# #...# #...# #...# ..#.. #...# #...# #...# #...# #...# ....# .#... ",
    "#...# #...# #...# #.... ..#.. #...# #...# #...# .#.#. .#.#. ...#. .#... ",
    "####. #...# ####. .###. ..#.. #...# #...# #.#.# ..#.. ..#.. ..#.. .#... ",
    "#.... #.#.# #.#.. ....# ..#.. #...# .#.#. #.#.# .#.#. ..#.. .#... .#... ",
    "#.... #..#. #..#. #...# ..#.. #...# .#.#. #.#.# #...# ..#.. #.... .#... ",
    "#.... .##.# #...# .###. ..#.. .###. ..#.. .#.#. #...# ..#.. ##### .#... ",
    "..... ..... ..... ..... ..... ..... ..... ..... ..... ..... ..... .#... ",
    "..... ..... ..... ..... ..... ..... ..... ..... ..... ..... ..... .##.. ",
    /* from \ */
    "#.... ..##. ..#.. ..... .#... ..... #.... ..... ....# ..... ..##. ..... ",
    "#.... ...#. .#.#. ..... ..#.. ..... #.... ..... ....# ..... .#... ..... ",
    ".#... ...#. #...# ..... ..... .###. ####. .###. .#### .###. ###.. .#### ",
    "..#.. ...#. ..... ..... ..... ....# #...# #.... #...# #...# .#... #...# ",
    "...#. ...#. ..... ..... ..... .#### #...# #.... #...# ##### .#... #...# ",
    "....# ...#. ..... ..... ..... #...# #...# #.... #...# #.... .#... #...# ",
    "....# ...#. ..... ..... ..... .#### ####. .###. .#### .###. .#... .#### ",
    "..... ...#. ..... ##### ..... ..... ..... ..... ..... ..... ..... ....# ",
    "..... ..##. ..... ..... ..... ..... ..... ..... ..... ..... ..... .###. ",
    /* from 'h' */
    "#.... ..#.. ..#.. #.... .#... ..... ..... ..... ..... ..... ..... ..... ",
    "#.... ..... ..... #.... .#... ..... ..... ..... ..... ..... ..... ..... ",
    "####. ..#.. ..#.. #..#. .#... ##.#. ####. .###. ####. .#### #.##. .###. ",
    "#...# ..#.. ..#.. #.#.. .#... #.#.# #...# #...# #...# #...# ##... #.... ",
    "#...# ..#.. ..#.. ##... .#... #.#.# #...# #...# #...# #...# #.... .###. ",
    "#...# ..#.. ..#.. #.#.. .#... #.#.# #...# #...# #...# #...# #.... ....# ",
    "#...# ..#.. ..#.. #..#. ..#.. #.#.# #...# .###. ####. .#### #.... ####. ",
    "..... ..... ..#.. ..... ..... ..... ..... ..... #.... ....# ..... ..... ",
    "..... ..... .#... ..... ..... ..... ..... ..... #.... ....# ..... ..... ",
    /* from 't' */
    ".#... ..... ..... ..... ..... ..... ..... ...#. ..#.. .#... ..... ##### ",
    ".#... ..... ..... ..... ..... ..... ..... ..#.. ..#.. ..#.. ..... #...# ",
    "###.. #...# #...# #...# #...# #...# ##### ..#.. ..#.. ..#.. ..... #...# ",
    ".#... #...# #...# #...# .#.#. #...# ...#. ..#.. ..#.. ..#.. .#... #...# ",
    ".#... #...# .#.#. #.#.# ..#.. #...# ..#.. .#... ..#.. ...#. #.#.# #...# ",
    ".#... #...# .#.#. #.#.# .#.#. #...# .#... ..#.. ..#.. ..#.. ...#. #...# ",
    "..#.. .#### ..#.. .#.#. #...# .#### ##### ..#.. ..#.. ..#.. ..... ##### ",
    "..... ..... ..... ..... ..... ....# ..... ..#.. ..#.. ..#.. ..... ..... ",
    "..... ..... ..... ..... ..... .###. ..... ...#. ..#.. .#... ..... ..... "
};

/* Is this dot of the letter set? Outside the letter nothing is. */
static bool lit(int letter, int column, int row)
{
    if (column < 0 || row < 0 || column >= FONT_W || row >= FONT_H) return false;
    return font[letter / FONT_BAND * FONT_H + row][letter % FONT_BAND * (FONT_W + 1) + column]
           == '#';
}

/* Which picture a byte shows: the box at the end for whatever is not ASCII. */
static int letter_of(char byte)
{
    unsigned char code = (unsigned char)byte;
    return code >= 32 && code < 127 ? code - 32 : 127 - 32;
}

/* The columns that a letter uses. Letters stand as close as they are wide, digits in steps. */
static void columns_of(int letter, int *from, int *to)
{
    *from = 0;
    *to = letter == 0 ? 3 : FONT_W;                      /* a blank is three wide */
    if (letter == 0 || (letter >= '0' - 32 && letter <= '9' - 32)) return;
    for (int side = 0; side < 2; side++) {
        for (;;) {
            bool used = false;
            int  column = side == 0 ? *from : *to - 1;
            for (int row = 0; row < FONT_H; row++) used = used || lit(letter, column, row);
            if (used || *to - *from <= 1) break;
            if (side == 0) ++*from;
            else           --*to;
        }
    }
}

/* Joins neighbouring dots of a letter by strokes; diagonally only where no corner dot does it. */
static int segments_of(int letter, double x, double y, double unit, double (*segment)[4])
{
    static const int step[4][2] = { { 1, 0 }, { 0, 1 }, { 1, 1 }, { -1, 1 } };
    int count = 0;
    for (int row = 0; row < FONT_H; row++) {
        for (int column = 0; column < FONT_W; column++) {
            if (!lit(letter, column, row)) continue;
            double px = x + (column + 0.5) * unit, py = y + (row + 0.5) * unit;
            bool   alone = true;
            for (int k = 0; k < 4; k++) {
                int nx = column + step[k][0], ny = row + step[k][1];
                if (!lit(letter, nx, ny)) continue;
                if (k >= 2 && (lit(letter, nx, row) || lit(letter, column, ny))) continue;
                double *s = segment[count++];
                s[0] = px;
                s[1] = py;
                s[2] = px + step[k][0] * unit;
                s[3] = py + step[k][1] * unit;
                alone = false;
            }
            if (alone) {                                 /* a dot, or the end of a stroke */
                double *s = segment[count++];
                s[0] = s[2] = px;
                s[1] = s[3] = py;
            }
        }
    }
    return count;
}

/* Letters of their own width and one dot between them. */
double kit_text_width(const char *text, double size)
{
    double unit = size / FONT_CAPS, width = 0;
    for (const char *c = text; *c != '\0'; c++) {
        int from, to;
        columns_of(letter_of(*c), &from, &to);
        width += (to - from + 1) * unit;
    }
    return width > 0 ? width - unit : 0;
}

void kit_draw_text(kit_picture *p, double x, double y, double size, kit_align align,
                   unsigned colour, const char *text)
{
    double unit = size / FONT_CAPS, width = kit_text_width(text, size);
    if (align == KIT_CENTRE) x -= 0.5 * width;
    if (align == KIT_RIGHT)  x -= width;
    for (const char *c = text; *c != '\0'; c++) {
        double segment[4 * FONT_W * FONT_H][4];
        int from, to, letter = letter_of(*c);
        columns_of(letter, &from, &to);
        int count = segments_of(letter, x - from * unit, y, unit, segment);
        stroke(p, segment, count, 0.5 * unit, colour);
        x += (to - from + 1) * unit;
    }
}

void kit_draw_text_in(kit_picture *p, double x, double y, double size, kit_align align,
                      unsigned colour, const char *text, double width)
{
    char   cut[256];
    size_t length = strlen(text);
    if (length > sizeof cut - 3) length = sizeof cut - 3;
    memcpy(cut, text, length);
    cut[length] = '\0';
    while (length > 0 && kit_text_width(cut, size) > width) {
        length--;
        memcpy(cut + length, "..", 3);
    }
    kit_draw_text(p, x, y, size, align, colour, cut);
}
