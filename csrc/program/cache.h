// Stages kept from call to call.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "program/stages.h"

namespace sparseprune {

// What they depend on; two calls with equal keys share them.
struct StagesKey {
  std::string text;
  std::vector<int64_t> numbers;
  bool operator<(const StagesKey& other) const {
    return numbers != other.numbers ? numbers < other.numbers : text < other.text;
  }
};

// The stages of this key, made once. For any number of threads.
std::shared_ptr<const Stages> cached_stages(const StagesKey& key,
                                            const std::function<std::unique_ptr<Stages>()>& make);

}  // namespace sparseprune
