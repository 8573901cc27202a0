/* kit_picture.c - K6: pictures in memory and on disk. The only file that includes the system's stb
 * headers: private to this file, cut down to PNG and JPEG, their warnings fenced off. */
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "kit.h"

#if defined(__GNUC__) || defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpragmas"
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wsign-conversion"
#pragma GCC diagnostic ignored "-Wdouble-promotion"
#pragma GCC diagnostic ignored "-Wshadow"
#pragma GCC diagnostic ignored "-Wpedantic"
#pragma GCC diagnostic ignored "-Wextra"
#pragma GCC diagnostic ignored "-Wsign-compare"
#pragma GCC diagnostic ignored "-Wcast-qual"
#pragma GCC diagnostic ignored "-Woverflow"
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wunused-parameter"
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"
#pragma GCC diagnostic ignored "-Wimplicit-fallthrough"
#endif

#define STB_IMAGE_STATIC
#define STB_IMAGE_IMPLEMENTATION
#define STBI_ONLY_PNG
#define STBI_ONLY_JPEG
#define STBI_NO_STDIO
#define STBI_NO_HDR
#define STBI_NO_LINEAR
#define STBI_MAX_DIMENSIONS 32768
#include <stb/stb_image.h>

#define STB_IMAGE_WRITE_STATIC
#define STB_IMAGE_WRITE_IMPLEMENTATION
#define STBI_WRITE_NO_STDIO
#include <stb/stb_image_write.h>

/* Newer systems carry the second version of the resizer, with another interface. */
#ifdef __has_include
#if __has_include(<stb/stb_image_resize2.h>)
#define KIT_RESIZE2
#endif
#endif
#define STB_IMAGE_RESIZE_STATIC
#define STB_IMAGE_RESIZE_IMPLEMENTATION
#ifdef KIT_RESIZE2
#include <stb/stb_image_resize2.h>
#else
/* This version asserts that a filter's weights add up to nearly 1 before it divides by their sum; for
 * some sizes (451 to 224) they do not, which that division mends. */
#define STBIR_ASSERT(condition) ((void)0)
#include <stb/stb_image_resize.h>
#endif

#if defined(__GNUC__) || defined(__clang__)
#pragma GCC diagnostic pop
/* Declared by stb and not defined (GIF, HDR): gcc looks for those at the end of the file. */
#pragma GCC diagnostic ignored "-Wunused-function"
#endif

#define FILE_LIMIT  ((size_t)256 << 20)      /* bytes */
#define PIXEL_LIMIT ((size_t)64 << 20)       /* pixels of one picture */

static size_t bytes_of(int w, int h) { return (size_t)w * (size_t)h * 3; }

bool kit_picture_new(kit_picture *picture, int w, int h, unsigned colour, xg_error *error)
{
    memset(picture, 0, sizeof *picture);
    if (w < 1 || h < 1 || (size_t)w > PIXEL_LIMIT / (size_t)h) {
        return kit_fail(error, XG_ERR_ARGUMENT, "a picture of %d x %d is empty or too large", w, h);
    }
    picture->rgb = (unsigned char *)malloc(bytes_of(w, h));
    if (picture->rgb == NULL) {
        return kit_fail(error, XG_ERR_MEMORY, "out of memory for a picture of %d x %d", w, h);
    }
    picture->w = w;
    picture->h = h;
    for (size_t i = 0; i < bytes_of(w, h); i += 3) {
        picture->rgb[i]     = (unsigned char)(colour >> 16 & 255);
        picture->rgb[i + 1] = (unsigned char)(colour >> 8 & 255);
        picture->rgb[i + 2] = (unsigned char)(colour & 255);
    }
    return true;
}

void kit_picture_free(kit_picture *picture)
{
    free(picture->rgb);
    memset(picture, 0, sizeof *picture);
}

/* ----------------------------------------------------------------------------------- loading -- */

/* Lays the pixels on white by their opacity. */
static void drop_alpha(const unsigned char *rgba, size_t pixels, unsigned char *rgb)
{
    for (size_t i = 0; i < pixels; i++) {
        int alpha = rgba[4 * i + 3];
        for (size_t c = 0; c < 3; c++) {
            int value = rgba[4 * i + c] * alpha + 255 * (255 - alpha);
            rgb[3 * i + c] = (unsigned char)((value + 127) / 255);
        }
    }
}

/* The extents are read first and checked, so that a small file cannot ask for a huge picture. */
static bool decode(kit_picture *picture, const unsigned char *bytes, size_t count, const char *path,
                   xg_error *error)
{
    char text[100];
    int  w = 0, h = 0, channels = 0;
    kit_short_path(path, text);
    if (count > INT_MAX || !stbi_info_from_memory(bytes, (int)count, &w, &h, &channels)) {
        return kit_fail(error, XG_ERR_FORMAT, "%s is neither a PNG nor a JPEG picture", text);
    }
    if (w < 1 || h < 1 || (size_t)w > PIXEL_LIMIT / (size_t)h) {
        return kit_fail(error, XG_ERR_UNSUPPORTED, "%s has %d x %d pixels; the limit is 64 million "
                        "in all: make it smaller", text, w, h);
    }
    bool alpha = channels == 2 || channels == 4;
    unsigned char *data = stbi_load_from_memory(bytes, (int)count, &w, &h, &channels,
                                                alpha ? 4 : 3);
    if (data == NULL) {
        return kit_fail(error, XG_ERR_FORMAT, "%s is damaged (%s): remove or replace it", text,
                        stbi_failure_reason());
    }
    bool fine = kit_picture_new(picture, w, h, KIT_WHITE, error);
    if (fine && alpha) drop_alpha(data, (size_t)w * (size_t)h, picture->rgb);
    else if (fine)     memcpy(picture->rgb, data, bytes_of(w, h));
    stbi_image_free(data);
    return fine;
}

bool kit_picture_load(kit_picture *picture, const char *path, xg_error *error)
{
    memset(picture, 0, sizeof *picture);
    unsigned char *bytes = NULL;
    size_t count = 0;
    if (!kit_read_file(path, FILE_LIMIT, &bytes, &count, error)) return false;
    bool fine = decode(picture, bytes, count, path, error);
    free(bytes);
    return fine;
}

/* ------------------------------------------------------------------------------------ saving -- */

bool kit_picture_save(const kit_picture *picture, const char *path, xg_error *error)
{
    if (picture->rgb == NULL) return kit_fail(error, XG_ERR_ARGUMENT, "an empty picture to save");
    int count = 0;
    unsigned char *bytes = stbi_write_png_to_mem(picture->rgb, picture->w * 3, picture->w,
                                                 picture->h, 3, &count);
    if (bytes == NULL || count < 0) {
        free(bytes);
        return kit_fail(error, XG_ERR_MEMORY, "out of memory for a PNG of %d x %d", picture->w,
                        picture->h);
    }
    bool fine = kit_write_file(path, bytes, (size_t)count, error);
    free(bytes);
    return fine;
}

/* ---------------------------------------------------------------------------------- resizing -- */

/* Both versions of the resizer use the triangle filter, widened when shrinking. */
bool kit_picture_resize(const kit_picture *in, int w, int h, kit_picture *out, xg_error *error)
{
    memset(out, 0, sizeof *out);
    if (in->rgb == NULL) return kit_fail(error, XG_ERR_ARGUMENT, "an empty picture to resize");
    if (!kit_picture_new(out, w, h, KIT_WHITE, error)) return false;
    if (w == in->w && h == in->h) {
        memcpy(out->rgb, in->rgb, bytes_of(w, h));
        return true;
    }
#ifdef KIT_RESIZE2
    bool fine = stbir_resize(in->rgb, in->w, in->h, 0, out->rgb, w, h, 0, STBIR_RGB,
                             STBIR_TYPE_UINT8, STBIR_EDGE_CLAMP, STBIR_FILTER_TRIANGLE) != NULL;
#else
    bool fine = stbir_resize_uint8_generic(in->rgb, in->w, in->h, 0, out->rgb, w, h, 0, 3,
                                           STBIR_ALPHA_CHANNEL_NONE, 0, STBIR_EDGE_CLAMP,
                                           STBIR_FILTER_TRIANGLE, STBIR_COLORSPACE_LINEAR,
                                           NULL) != 0;
#endif
    if (!fine) {
        kit_picture_free(out);
        return kit_fail(error, XG_ERR_MEMORY, "out of memory for resizing a picture");
    }
    return true;
}

/* ----------------------------------------------------------------------------- to and fro ----- */

/* number = byte * scale + shift for each colour; Caffe's planes run blue, green, red. */
typedef struct norm_rule { double scale[3], shift[3]; } norm_rule;

static norm_rule rule_of(kit_norm norm)
{
    static const double mean[3] = { 0.485, 0.456, 0.406 }, deviation[3] = { 0.229, 0.224, 0.225 };
    static const double caffe[3] = { 123, 117, 104 };
    norm_rule r;
    for (int c = 0; c < 3; c++) {
        r.scale[c] = 1.0 / 255;
        r.shift[c] = 0;
        if (norm == KIT_NORM_IMAGENET) {
            r.scale[c] = 1.0 / (255 * deviation[c]);
            r.shift[c] = -mean[c] / deviation[c];
        } else if (norm == KIT_NORM_CAFFE) {
            r.scale[c] = 1;
            r.shift[c] = -caffe[c];
        } else if (norm == KIT_NORM_SIGNED) {
            r.scale[c] = 1.0 / 127.5;
            r.shift[c] = -1;
        }
    }
    return r;
}

/* Which plane holds colour c. */
static size_t plane_of(kit_norm norm, size_t c) { return norm == KIT_NORM_CAFFE ? 2 - c : c; }

/* A table of 256 numbers for each colour replaces arithmetic on every pixel. */
void kit_picture_normalise(const unsigned char *rgb, int w, int h, kit_norm norm, xg_real *planes)
{
    norm_rule r = rule_of(norm);
    size_t count = (size_t)w * (size_t)h;
    for (size_t c = 0; c < 3; c++) {
        xg_real table[256];                      /* 256 possible bytes, many more pixels */
        for (int i = 0; i < 256; i++) table[i] = (xg_real)(i * r.scale[c] + r.shift[c]);
        xg_real *plane = planes + plane_of(norm, c) * count;
        for (size_t i = 0; i < count; i++) plane[i] = table[rgb[3 * i + c]];
    }
}

/* Grey pictures have one plane and take green's rule; colours change places for Caffe. */
void kit_set_normalise(kit_set *set, kit_norm norm)
{
    norm_rule r = rule_of(norm);
    size_t count = (size_t)set->h * (size_t)set->w, channels = (size_t)set->channels;
    for (size_t i = 0; i < (size_t)set->count; i++) {
        xg_real *sample = set->pixels + i * channels * count;
        for (size_t c = 0; c < channels; c++) {
            size_t rule = channels == 3 ? c : 1;
            for (size_t k = c * count; k < (c + 1) * count; k++) {
                sample[k] = (xg_real)(255 * (double)sample[k] * r.scale[rule] + r.shift[rule]);
            }
        }
        for (size_t k = 0; k < count && channels == 3 && norm == KIT_NORM_CAFFE; k++) {
            xg_real red = sample[k];
            sample[k] = sample[2 * count + k];
            sample[2 * count + k] = red;
        }
    }
}

/* The rule backwards, rounded and clamped. */
bool kit_picture_from(kit_picture *picture, const xg_real *planes, int channels, int h, int w,
                      kit_norm norm, xg_error *error)
{
    memset(picture, 0, sizeof *picture);
    if (channels != 1 && channels != 3 && channels != 6) {
        return kit_fail(error, XG_ERR_ARGUMENT, "cannot show %d channels as a picture", channels);
    }
    if (!kit_picture_new(picture, w, h, KIT_WHITE, error)) return false;
    norm_rule r = rule_of(norm);
    size_t count = (size_t)w * (size_t)h;
    for (size_t c = 0; c < 3; c++) {
        const xg_real *plane = planes + (channels == 1 ? 0 : plane_of(norm, c)) * count;
        size_t rule = channels == 1 ? 1 : c;
        for (size_t i = 0; i < count; i++) {
            double value = ((double)plane[i] - r.shift[rule]) / r.scale[rule] + 0.5;
            picture->rgb[3 * i + c] = (unsigned char)(value >= 255 ? 255 : value > 0 ? value : 0);
        }
    }
    return true;
}
