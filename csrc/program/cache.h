// Plans kept from call to call.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "program/plan.h"

namespace sparseprune {

// What a plan depends on; two calls with equal keys share it.
struct PlanKey {
  std::string text;
  std::vector<int64_t> numbers;
  bool operator<(const PlanKey& other) const {
    return numbers != other.numbers ? numbers < other.numbers : text < other.text;
  }
};

// The plan of this key, made once. For any number of threads.
std::shared_ptr<const Plan> cached_plan(const PlanKey& key,
                                        const std::function<std::unique_ptr<Plan>()>& make);

}  // namespace sparseprune
