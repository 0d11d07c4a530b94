// Inference on images with threads, in C++11: handles that clean up after themselves, and errors as exceptions.
//
//   c++ -std=c++11 inference.cpp $(pkg-config --cflags --libs batchnorm) -o inference
#include <batchnorm.h>

#include <cmath>
#include <cstdio>
#include <memory>
#include <stdexcept>
#include <vector>

namespace {

void check(batchnorm_status status) {
    if (status != BATCHNORM_OK) {
        throw std::runtime_error(batchnorm_status_message(status));
    }
}

struct FreeThreads {
    void operator()(const batchnorm_executor *e) const { batchnorm_threads_free(e); }
};
using Threads = std::unique_ptr<const batchnorm_executor, FreeThreads>;

class BatchNorm {
public:
    BatchNorm(std::size_t channels, double epsilon)
        : gamma(channels, 1.0f), beta(channels), mean(channels), var(channels, 1.0f), desc() {
        desc.struct_size = sizeof desc;
        desc.layout = BATCHNORM_NHWC;
        desc.dtype = BATCHNORM_F32;
        desc.activation = BATCHNORM_RELU;
        desc.channels = channels;
        desc.epsilon = epsilon;
    }

    // In place: y is x.
    void operator()(std::vector<float> &images, std::size_t batch, const batchnorm_executor *executor) {
        desc.batch = batch;
        desc.spatial = images.size() / (batch * desc.channels);
        desc.executor = executor;
        check(batchnorm_forward_inference(&desc, images.data(), nullptr, gamma.data(), beta.data(), mean.data(),
                                          var.data(), images.data()));
    }

    std::vector<float> gamma, beta, mean, var;

private:
    batchnorm_desc desc;
};

}  // namespace

int main() try {
    const std::size_t batch = 8, channels = 64, positions = 28 * 28;
    BatchNorm bn(channels, 1e-5);
    for (std::size_t c = 0; c < channels; c++) {
        bn.mean[c] = static_cast<float>(c);
        bn.beta[c] = 0.5f;
    }
    std::vector<float> images(batch * positions * channels), alone;
    for (std::size_t i = 0; i < images.size(); i++) {
        images[i] = static_cast<float>(i % channels) + (i % 3 == 0 ? -1.0f : 1.0f);
    }
    alone = images;

    const Threads threads(batchnorm_threads_new(2));
    if (!threads) {
        throw std::runtime_error("no threads");
    }
    bn(images, batch, threads.get());
    bn(alone, batch, nullptr);
    std::printf("%s, %zu threads: %s as one thread\n", batchnorm_isa_name(BATCHNORM_ISA_DETECT), threads->width,
                images == alone ? "the same bits" : "OTHER BITS");
    std::printf("y of x - mean = -1 and 1: %g and %g\n", static_cast<double>(images[0]), static_cast<double>(images[1]));
    const bool good = images == alone && images[0] == 0.0f && std::fabs(images[1] - 1.5f) < 1e-4f;

    try {
        std::vector<float> none(1);
        BatchNorm(channels, -1.0)(none, 1, nullptr);
    } catch (const std::runtime_error &e) {
        std::printf("refused: %s\n", e.what());
        return good ? 0 : 1;
    }
    return 1;
} catch (const std::exception &e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
}
