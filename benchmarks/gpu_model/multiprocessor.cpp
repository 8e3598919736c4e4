// A model of one multiprocessor that runs copies of one warp's instructions: four schedulers, pipes that are busy for
// some cycles with each instruction, scoreboards as the code's control words set them, and memory with a latency and a
// bandwidth. Arguments: warps of a block, blocks that are resident, bytes a cycle, latency, cycles to start a block,
// blocks to run, cycles an FMA holds its pipe, cycles a float64 instruction does. Input: a line for each instruction: wait, stall, write, read, pipe, kind, bytes, on.
// Output: bytes a cycle in the steady state, and instructions a cycle of each scheduler.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

enum Pipe { FMA, ALU, IMAD, IMAD_WIDE, SPECIAL, LOAD_STORE, UNIFORM, CONSTANT, CONTROL, SHARED, DOUBLE, CONVERT, PIPES };
enum Kind { NOTHING, STREAM, CACHED, STORE, BARRIER, EXCHANGE };

struct Instruction {
  int wait, stall, write, read, pipe, kind, bytes, on;
};

struct Warp {
  size_t at = 0;
  double ready = 0, scoreboards[6] = {};
  int block = 0;
  bool live = false, at_barrier = false;
};

int main(int count, char **arguments) {
  if (count != 9) return 1;
  const int of_block = atoi(arguments[1]), resident = atoi(arguments[2]), blocks = atoi(arguments[6]);
  const double rate = atof(arguments[3]), latency = atof(arguments[4]), start = atof(arguments[5]);
  const double fma = atof(arguments[7]), f64 = atof(arguments[8]);
  const double busy[PIPES] = {fma, 2, 2, 4, 8, 0, 1, 1, 1, 0, f64, std::max(8.0, f64)};
  const double cached = 36, exchange = 24, special = 24, constant = 30, queue = 24;
  std::vector<Instruction> code;
  for (Instruction i; scanf("%d %d %d %d %d %d %d %d", &i.wait, &i.stall, &i.write, &i.read, &i.pipe, &i.kind, &i.bytes,
                            &i.on) == 8;)
    code.push_back(i);
  std::vector<Warp> warps(size_t(of_block) * resident);
  std::vector<int> left(resident), arrived(resident);
  double pipes[4][PIPES] = {}, memory = 0, port = 0, now = 0, bytes = 0, bytes_then = 0, then = 0;
  long issued = 0, issued_then = 0;
  int started = 0, done = 0;
  const auto begin = [&](int block) {
    for (int k = 0; k < of_block; ++k) {
      Warp &w = warps[size_t(block) * of_block + k];
      w = Warp();
      w.block = block, w.live = true, w.ready = now + start;
    }
    left[block] = of_block, arrived[block] = 0;
    ++started;
  };
  const auto waits = [&](const Warp &w) {
    double until = w.ready;
    for (int b = 0; b < 6; ++b)
      if (code[w.at].wait >> b & 1) until = std::max(until, w.scoreboards[b]);
    return until;
  };
  for (int b = 0; b < resident && started < blocks; ++b) begin(b);
  int turn[4] = {};
  const int all = int(warps.size());
  while (done < blocks) {
    bool any = false;
    for (int s = 0; s < 4; ++s) {
      const int own = (all + 3 - s) / 4;
      int chosen = -1;
      // The scheduler stays with a warp for as long as that can issue.
      for (int q = 0; q < own && chosen < 0; ++q) {
        const int k = (turn[s] + q) % own * 4 + s;
        const Warp &w = warps[k];
        if (!w.live || w.at_barrier || waits(w) > now) continue;
        const int pipe = code[w.at].pipe;
        const bool port_used = pipe == LOAD_STORE || pipe == SHARED;
        if (port_used ? code[w.at].on && port > now + queue : pipes[s][pipe == IMAD_WIDE ? IMAD : pipe] > now) continue;
        chosen = k;
      }
      if (chosen < 0) continue;
      any = true;
      ++issued;
      turn[s] = chosen / 4;
      Warp &w = warps[chosen];
      const Instruction &i = code[w.at];
      w.ready = now + std::max(1, i.stall);
      if (i.on) {
        double finished = now + 20, was_read = now + 12;
        if (i.pipe == LOAD_STORE || i.pipe == SHARED) {
          port = std::max(port, now) + (i.kind == CACHED ? 1 : std::max(1.0, i.bytes / 128.0));
          was_read = port + 6;
        } else {
          pipes[s][i.pipe == IMAD_WIDE ? IMAD : i.pipe] = now + busy[i.pipe];
        }
        if (i.kind == STREAM || i.kind == STORE) {
          memory = std::max(memory, now) + i.bytes / rate;
          bytes += i.bytes;
        }
        if (i.kind == STREAM) finished = std::max(memory, now + latency);
        if (i.kind == CACHED) finished = port + cached;
        if (i.kind == EXCHANGE) finished = port + exchange;
        if (i.pipe == SPECIAL || i.pipe == CONVERT) finished = now + special;
        if (i.pipe == DOUBLE) finished = now + 4 + f64;
        if (i.pipe == CONSTANT) finished = now + constant;
        if (i.write < 6) w.scoreboards[i.write] = std::max(w.scoreboards[i.write], finished);
        if (i.read < 6) w.scoreboards[i.read] = std::max(w.scoreboards[i.read], was_read);
        if (i.kind == BARRIER) {
          w.at_barrier = true;
          if (++arrived[w.block] == left[w.block]) {
            for (int k = 0; k < of_block; ++k) {
              Warp &other = warps[size_t(w.block) * of_block + k];
              if (other.at_barrier) other.at_barrier = false, other.ready = std::max(other.ready, now + 20);
            }
            arrived[w.block] = 0;
          }
        }
      }
      if (++w.at == code.size()) {
        w.live = false;
        if (--left[w.block] == 0) {
          // The first quarter fills the pipes.
          if (++done == blocks / 4) then = now, bytes_then = bytes, issued_then = issued;
          if (started < blocks) begin(w.block);
        }
      }
    }
    double next = now + 1;
    if (!any) {
      next = 1e300;
      for (const Warp &w : warps)
        if (w.live && !w.at_barrier) next = std::min(next, std::max(now + 1, waits(w)));
      if (next > 1e299) next = now + 1;
    }
    now = next;
  }
  printf("%.4f %.4f\n", (bytes - bytes_then) / (now - then), double(issued - issued_then) / (now - then) / 4);
}
