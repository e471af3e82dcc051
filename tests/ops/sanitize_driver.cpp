// Every kernel, forward and backward, on arrays of exactly the documented size, for AddressSanitizer and
// UBSan. From the root of the repository:
//
//   g++ -std=c++17 -O1 -g -march=native -fopenmp -fsanitize=address,undefined -fno-sanitize-recover=all
//       tests/ops/sanitize_driver.cpp -o sanitize_driver && ./sanitize_driver
//
// It prints one line a kernel and shape and returns 0 when every result is finite.
#include <cstdio>
#include <cstdlib>
#include <memory>

#include "../../ppsr2q/ops/csrc/ppsr2q_ops.cpp"

namespace {

unsigned state = 1;
bool failed = false;

float random_value() {
    state = state * 1664525u + 1013904223u;
    return static_cast<float>(state >> 8) / 8388608.0f - 1.0f;
}

// Heap memory of exactly count elements, so that one element too many is caught.
template <class T>
class Array {
public:
    explicit Array(int64_t count) : count_(count), data_(new T[count]()) {}
    operator T*() const { return data_.get(); }
    int64_t size() const { return count_; }

private:
    int64_t count_;
    std::unique_ptr<T[]> data_;
};

Array<float> random_array(int64_t count) {
    Array<float> values(count);
    for (int64_t i = 0; i < count; i++) {
        values[i] = random_value();
    }
    return values;
}

void expect(const char* what, int status, std::initializer_list<const Array<float>*> results) {
    bool finite = true;
    for (const Array<float>* result : results) {
        for (int64_t i = 0; i < result->size(); i++) {
            finite = finite && std::isfinite((*result)[i]);
        }
    }
    std::printf("%-18s status %d, %s\n", what, status, finite ? "finite" : "NOT FINITE");
    failed = failed || status != ppsr2q::OK || !finite;
}

void fake_quantize(int64_t count) {
    Array<float> x = random_array(count), grad = random_array(count), y(count), grad_x(count), grad_bounds(2);
    const float bounds[2] = {-0.7f, 0.6f};
    int status = ppsr2q_fake_quantize_forward(x, bounds, 4, count, y);
    status |= ppsr2q_fake_quantize_backward(x, bounds, 4, grad, count, grad_x, grad_bounds);
    expect("fake_quantize", status, {&y, &grad_x, &grad_bounds});
}

void token_linear(int64_t rows, int inputs, int outputs, bool norm, int bits) {
    Array<float> x = random_array(rows * inputs), scale = random_array(inputs), shift = random_array(inputs);
    Array<float> weight = random_array(inputs * outputs), bias = random_array(outputs);
    Array<float> residual = random_array(rows * outputs), grad = random_array(rows * outputs),
                 y(rows * outputs);
    Array<float> grad_x(rows * inputs), grad_scale(inputs), grad_shift(inputs), grad_weight(inputs * outputs);
    Array<float> grad_bias(outputs), grad_bounds(2), mean(inputs);
    const float bounds[2] = {-0.7f, 0.6f};
    Array<float> skip = random_array(rows * outputs), skip_scale = random_array(outputs), grad_skip(rows * outputs);
    Array<float> grad_skip_scale(outputs);
    const ppsr2q::LinearLayer layer{weight, bias, bits ? bounds : nullptr, residual, skip, skip_scale,
                                    y, bits, outputs};
    const ppsr2q::LinearGradient gradient{grad, grad_weight, grad_bias, grad_bounds, grad_skip, grad_skip_scale};
    const float* used_scale = norm ? static_cast<float*>(scale) : nullptr;
    int status = ppsr2q_token_linear_forward(x, rows, inputs, used_scale, shift, 1e-5f, &layer, 1);
    status |= ppsr2q_token_linear_backward(x, rows, inputs, used_scale, shift, 1e-5f, &layer, 1, &gradient,
                                           grad_x, grad_scale, grad_shift);
    status |= ppsr2q_token_mean(x, 1, rows, inputs, used_scale, shift, 1e-5f, mean);
    expect("token_linear", status, {&y, &grad_x, &grad_scale, &grad_shift, &grad_weight, &grad_bias, &mean,
                           &grad_skip, &grad_skip_scale});
}

void selective_scan(int64_t batch, int64_t length, int channels, int states, int bits) {
    const int64_t tokens = batch * length;
    Array<float> u = random_array(tokens * channels), delta = random_array(tokens * channels);
    Array<float> A = random_array(channels * states), B = random_array(tokens * states);
    Array<float> C = random_array(tokens * states), D = random_array(channels), bias = random_array(channels);
    for (int64_t i = 0; i < A.size(); i++) {
        A[i] = -std::fabs(A[i]);
    }
    const float bounds[2] = {-0.7f, 0.6f};
    Array<float> y(tokens * channels), grad_y = random_array(tokens * channels),
                                       all_states(tokens * channels * states);
    Array<float> checkpoints(batch * ((length + 31) / 32) * ((channels + 15) / 16 * 16) * states);
    Array<float> grad_u(u.size()), grad_delta(u.size()), grad_A(A.size()), grad_B(B.size()), grad_C(C.size());
    Array<float> grad_D(channels), grad_bias(channels), grad_bounds(2);
    int status = ppsr2q_selective_scan_forward(u, delta, A, B, C, D, bias, bounds, bits, batch, length,
                                               channels, states, y, checkpoints, all_states);
    status |= ppsr2q_selective_scan_backward(u, delta, A, B, C, D, bias, bounds, bits, batch, length,
                                             channels, states, checkpoints, grad_y, grad_u, grad_delta,
                                             grad_A, grad_B, grad_C, grad_D, grad_bias, grad_bounds);
    expect("selective_scan", status,
           {&y, &all_states, &grad_u, &grad_delta, &grad_A, &grad_B, &grad_C, &grad_bounds});
}

void state_space(int64_t batch, int64_t length, int channels, int states, int rank, int bits) {
    const int64_t tokens = batch * length;
    const int outputs = rank + 2 * states;
    Array<float> u = random_array(tokens * channels), prompt = random_array(tokens * states),
                 y(tokens * channels);
    Array<float> x_proj = random_array(outputs * channels), dt_proj = random_array(channels * rank);
    Array<float> A = random_array(channels * states), D = random_array(channels),
                 bias = random_array(channels);
    for (int64_t i = 0; i < A.size(); i++) {
        A[i] = -std::fabs(A[i]);
    }
    Array<float> checkpoints(batch * ((length + 31) / 32) * ((channels + 15) / 16 * 16) * states);
    Array<float> grad_y = random_array(y.size()), grad_u(u.size()), grad_prompt(prompt.size());
    Array<float> grad_x_proj(x_proj.size()), grad_dt_proj(dt_proj.size()), grad_A(A.size()), grad_D(channels);
    Array<float> grad_bias(channels), grad_bounds(12);
    const float b[2] = {-0.7f, 0.6f};
    const ppsr2q::StateSpaceInputs in{
        u,   prompt, x_proj, dt_proj, A, D, bias, {b, b, b, b, b, b}, {bits, bits, bits, bits, bits, bits},
        rank};
    const ppsr2q::StateSpaceGradients gradients{grad_u, grad_prompt, grad_x_proj, grad_dt_proj,
                                                grad_A, grad_D,      grad_bias,   grad_bounds};
    int status = ppsr2q_state_space_forward(&in, batch, length, channels, states, y, checkpoints);
    status |=
        ppsr2q_state_space_backward(&in, batch, length, channels, states, checkpoints, grad_y, &gradients);
    expect("state_space", status,
           {&y, &grad_u, &grad_prompt, &grad_x_proj, &grad_dt_proj, &grad_A, &grad_bounds});
}

void routing(int64_t batch, int64_t tokens, int classes, int width) {
    Array<float> logits = random_array(batch * tokens * classes), table = random_array(classes * width);
    Array<int32_t> index(batch * tokens), order(batch * tokens), inverse(batch * tokens);
    Array<float> prompt(batch * tokens * width), moved(prompt.size()), grad = random_array(prompt.size());
    Array<float> grad_logits(logits.size()), grad_table(table.size());
    int status = ppsr2q_route(logits, batch, tokens, classes, index, order, inverse);
    status |= ppsr2q_routed_prompt_forward(table, index, batch * tokens, classes, width, prompt);
    status |= ppsr2q_gather_rows(prompt, order, prompt, batch, tokens, width, moved);
    status |= ppsr2q_routed_prompt_backward(logits, table, index, grad, batch * tokens, classes, width,
                                            grad_logits, grad_table);
    expect("routing", status, {&prompt, &moved, &grad_logits, &grad_table});
}

void window_attention(int64_t batch, int height, int width, int heads, int head_dim, int window, int shift,
                      int bits) {
    const int64_t size = batch * height * width * heads * head_dim;
    Array<float> q = random_array(size), k = random_array(size), v = random_array(size),
                 grad = random_array(size);
    Array<float> table = random_array((2 * window - 1) * (2 * window - 1) * heads), out(size);
    Array<float> statistics(batch * height * width * heads * 2), grad_q(size), grad_k(size), grad_v(size);
    Array<float> grad_table(table.size()), grad_bounds(8);
    const float range[2] = {-0.7f, 0.6f}, probabilities[2] = {0.0f, 0.2f};
    const float* bounds[4] = {range, range, range, probabilities};
    const int all_bits[4] = {bits, bits, bits, bits};
    int status = ppsr2q_window_attention_forward(q, k, v, table, 0.3f, bounds, all_bits, batch, height, width,
                                                 heads, head_dim, window, shift, out, statistics);
    status |= ppsr2q_window_attention_backward(q, k, v, table, 0.3f, bounds, all_bits, batch, height, width,
                                               heads, head_dim, window, shift, statistics, grad, grad_q,
                                               grad_k, grad_v, grad_table, grad_bounds);
    expect("window_attention", status, {&out, &grad_q, &grad_k, &grad_v, &grad_table, &grad_bounds});
}

void gated_mixing(int64_t batch, int height, int width, int channels, int bits) {
    const int64_t size = batch * height * width * channels;
    Array<float> x = random_array(2 * size), scale = random_array(channels), shift = random_array(channels);
    Array<float> weight = random_array(channels * 25), bias = random_array(channels),
                 grad = random_array(size);
    Array<float> y(size), grad_x(2 * size), grad_scale(channels), grad_shift(channels),
        grad_weight(weight.size());
    Array<float> grad_bias(channels), grad_bounds(2);
    const float bounds[2] = {-0.7f, 0.6f};
    int status = ppsr2q_gated_mixing_forward(x, scale, shift, 1e-5f, weight, bias, bounds, bits, batch,
                                             height, width, channels, 5, y);
    status |= ppsr2q_gated_mixing_backward(x, scale, shift, 1e-5f, weight, bias, bounds, bits, batch, height,
                                           width, channels, 5, grad, grad_x, grad_scale, grad_shift,
                                           grad_weight, grad_bias, grad_bounds);
    expect("gated_mixing", status,
           {&y, &grad_x, &grad_scale, &grad_shift, &grad_weight, &grad_bias, &grad_bounds});
}

void positional_gate(int64_t batch, int height, int width, int channels, int bits) {
    const int64_t size = batch * height * width * channels;
    Array<float> x = random_array(size), weight = random_array(channels * 9), bias = random_array(channels),
                 y(size);
    Array<float> grad = random_array(size), grad_x(size), grad_weight(weight.size()), grad_bias(channels);
    Array<float> grad_bounds(2);
    const float bounds[2] = {-0.7f, 0.6f};
    int status =
        ppsr2q_positional_gate_forward(x, weight, bias, bounds, bits, batch, height, width, channels, 3, y);
    status |= ppsr2q_positional_gate_backward(x, weight, bias, bounds, bits, batch, height, width, channels,
                                              3, grad, grad_x, grad_weight, grad_bias, grad_bounds);
    expect("positional_gate", status, {&y, &grad_x, &grad_weight, &grad_bias, &grad_bounds});
}

void convolution(int64_t batch, int height, int width, int inputs, int outputs, int kernel, int bits) {
    const int64_t pixels = batch * height * width;
    Array<float> x = random_array(pixels * inputs), weight = random_array(inputs * outputs * kernel * kernel);
    Array<float> bias = random_array(outputs), residual = random_array(pixels * outputs), y(pixels * outputs);
    Array<float> grad = random_array(y.size()), grad_x(x.size()), grad_weight(weight.size()), grad_bias(outputs);
    Array<float> grad_bounds(2);
    const float bounds[2] = {-0.7f, 0.6f};
    int status = ppsr2q_convolution_forward(x, weight, bias, residual, bounds, bits, batch, height, width, inputs,
                                            outputs, kernel, y);
    status |= ppsr2q_convolution_backward(x, weight, bias, residual, bounds, bits, batch, height, width, inputs,
                                          outputs, kernel, grad, grad_x, grad_weight, grad_bias, grad_bounds);
    expect("convolution", status, {&y, &grad_x, &grad_weight, &grad_bias, &grad_bounds});
}

void feature_distance(int64_t batch, int64_t size, int unit) {
    Array<float> a = random_array(batch * size), b = random_array(batch * size), inverses(2 * batch), distance(batch);
    Array<float> grad = random_array(batch), grad_a(a.size());
    int status = ppsr2q_feature_distance_forward(a, b, batch, size, unit, inverses, distance);
    status |= ppsr2q_feature_distance_backward(a, b, batch, size, inverses, grad, grad_a);
    expect("feature_distance", status, {&inverses, &distance, &grad_a});
}

}  // namespace

int main() {
    for (int64_t count : {1, 7, 8, 8192, 20001}) {
        fake_quantize(count);
    }
    for (int bits : {0, 4}) {
        for (bool norm : {false, true}) {
            token_linear(1, 48, 48, norm, bits);
            token_linear(300, 24, 48, norm, bits);
            token_linear(257, 60, 120, norm, bits);
            token_linear(33, 7, 19, norm, bits);
        }
        selective_scan(2, 100, 48, 8, bits);
        selective_scan(1, 33, 20, 16, bits);
        selective_scan(1, 1, 3, 4, bits);
        state_space(2, 100, 48, 8, 3, bits);
        state_space(1, 290, 20, 16, 5, bits);
        state_space(1, 1, 3, 4, 1, bits);
        window_attention(1, 32, 32, 4, 12, 16, 8, bits);
        window_attention(2, 16, 24, 6, 10, 8, 0, bits);
        gated_mixing(1, 16, 16, 24, bits);
        gated_mixing(2, 9, 37, 13, bits);
        positional_gate(1, 16, 16, 48, bits);
        positional_gate(2, 9, 37, 13, bits);
        convolution(1, 16, 32, 48, 48, 3, bits);
        convolution(2, 9, 37, 13, 7, 5, bits);
        convolution(1, 1, 1, 3, 19, 1, bits);
    }
    for (int unit : {0, 1}) {
        feature_distance(2, 48 * 64, unit);
        feature_distance(3, 7, unit);
    }
    routing(2, 700, 64, 8);
    routing(1, 33, 19, 5);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
