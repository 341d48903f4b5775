/* Scores rows by trees in float64, each tree's value added in order, so that the sum is scikit-learn's to the last bit.
 *
 * Eight trees are walked side by side, each for a fixed number of steps (a leaf leads to itself): no branch depends on data,
 * so there is nothing for the processor to mispredict. Indices were checked by cellwork.models.compiled.program.check.
 */
#include <float.h>
#include <math.h>
#include <stdint.h>

#define SIDE_BY_SIDE 8
#define MISSING_LEFT (1 << 30)

typedef struct {
    double threshold;
    int32_t feature;
    int32_t left;
} node;

static inline int32_t step(const node *nodes, int32_t at, const double *x)
{
    const node *n = nodes + at;
    double value = x[n->feature & ~MISSING_LEFT];
    int missing_left = (value != value) & (n->feature >= MISSING_LEFT);
    return n->left + (!(value <= n->threshold) & !missing_left);
}

static double linked(double raw, int link)
{
    switch (link) {
    case 1: return 1.0 / (1.0 + exp(-raw));
    case 2: return 1.0 / (1.0 + exp(-2.0 * raw));
    case 3: return exp(raw);
    default: return raw;
    }
}

/* Round a row to float32 where the trees compare in it. Returns 0; 1: a missing value that is not taken; 2: too large. */
static int prepare(double *x, int64_t width, int single, int missing)
{
    int wrong = 0;
    for (int64_t k = 0; k < width; k++) {
        wrong |= (x[k] != x[k]) & !missing;
        if (single) {
            wrong |= fabs(x[k]) > FLT_MAX ? 2 : 0;
            x[k] = (double)(float)x[k];
        }
    }
    return wrong;
}

int score_trees(double *rows, int64_t count, int64_t width, const node *nodes, const double *values, const int32_t *roots,
                const int32_t *depths, int64_t trees, double base, double divide, int single, int missing, int link,
                double *scores)
{
    int wrong = 0;
    for (int64_t row = 0; row < count; row++) {
        double *x = rows + row * width;
        wrong |= prepare(x, width, single, missing);
        double sum = base;
        int64_t tree = 0;
        for (; tree + SIDE_BY_SIDE <= trees; tree += SIDE_BY_SIDE) {
            int32_t at[SIDE_BY_SIDE];
            int32_t steps = 0;
            for (int k = 0; k < SIDE_BY_SIDE; k++) {
                at[k] = roots[tree + k];
                steps = depths[tree + k] > steps ? depths[tree + k] : steps;
            }
            for (int32_t s = 0; s < steps; s++)
                for (int k = 0; k < SIDE_BY_SIDE; k++)
                    at[k] = step(nodes, at[k], x);
            for (int k = 0; k < SIDE_BY_SIDE; k++)
                sum += values[at[k]];
        }
        for (; tree < trees; tree++) {
            int32_t at = roots[tree];
            for (int32_t s = 0; s < depths[tree]; s++)
                at = step(nodes, at, x);
            sum += values[at];
        }
        scores[row] = linked(sum / divide, link);
    }
    return wrong;
}
