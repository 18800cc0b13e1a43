#pragma once

#include "CUDAGuard.h"
