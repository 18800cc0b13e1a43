// Divisions of integers that round up or down, for plans.
#pragma once

namespace involution {

// `b` is positive, and for the first two `a` is not negative.
template <typename A, typename B>
constexpr auto ceil_div(A a, B b) {
  return (a + b - 1) / b;
}
template <typename A, typename B>
constexpr auto round_up(A a, B b) {
  return ceil_div(a, b) * b;
}
template <typename A, typename B>
constexpr auto floor_div(A a, B b) {
  return (a >= 0 ? a : a - b + 1) / b;
}
template <typename A, typename B>
constexpr auto floor_mod(A a, B b) {
  return a - floor_div(a, b) * b;
}

}  // namespace involution
