package gpu

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// model is what a data sheet says about a GPU that can be simulated.
type model struct {
	name         string // as NVML says it
	brand        string
	architecture string
	capability   string
	memory       uint64 // bytes
	cores        uint32
	watts        float32 // power limit
	idleWatts    float32
	slowdown     float32 // °C
	clockSM      float32 // MHz, boost
	clockMemory  float32 // MHz
	lanes        uint32  // NVLink lanes to each other GPU of the model, through NVSwitch; 0: none
	fan          bool
}

const mib = 1 << 20

// models by the word that people type. Figures: NVIDIA's data sheets; memory
// as NVML reports it.
var models = map[string]model{
	"B200":    {"NVIDIA B200", "NVIDIA", "Blackwell", "10.0", 183359 * mib, 18944, 1000, 140, 87, 1965, 3996, 18, false},
	"H200":    {"NVIDIA H200", "NVIDIA", "Hopper", "9.0", 143771 * mib, 16896, 700, 75, 87, 1980, 3201, 18, false},
	"H100":    {"NVIDIA H100 80GB HBM3", "NVIDIA", "Hopper", "9.0", 81559 * mib, 16896, 700, 70, 87, 1980, 2619, 18, false},
	"A100":    {"NVIDIA A100-SXM4-80GB", "NVIDIA", "Ampere", "8.0", 81920 * mib, 6912, 400, 60, 89, 1410, 1593, 12, false},
	"L40S":    {"NVIDIA L40S", "NVIDIA", "Ada Lovelace", "8.9", 46068 * mib, 18176, 350, 36, 88, 2520, 9001, 0, false},
	"RTX4090": {"NVIDIA GeForce RTX 4090", "GeForce", "Ada Lovelace", "8.9", 24564 * mib, 16384, 450, 22, 90, 2520, 10501, 0, true},
	"T4":      {"Tesla T4", "NVIDIA", "Turing", "7.5", 15360 * mib, 2560, 70, 10, 93, 1590, 5001, 0, false},
}

// modelNames are the keys of models, sorted, for messages.
func modelNames() []string {
	names := make([]string, 0, len(models))
	for name := range models {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// parseSim reads "sim:8xH100,1xT4" into one model per GPU. ok is false when
// the spec does not begin with "sim:".
func parseSim(spec string) (list []model, ok bool, err error) {
	rest, ok := strings.CutPrefix(spec, "sim:")
	if !ok {
		return nil, false, nil
	}
	for part := range strings.SplitSeq(rest, ",") {
		count, word, found := strings.Cut(strings.TrimSpace(part), "x")
		n, convErr := strconv.Atoi(count)
		if !found || convErr != nil || n < 1 {
			return nil, true, fmt.Errorf("simulated GPUs %q: write number, x, model, as in sim:8xH100", part)
		}
		m, known := models[strings.ToUpper(word)]
		if !known {
			return nil, true, fmt.Errorf("no simulated GPU model %q: choose one of %s", word, strings.Join(modelNames(), ", "))
		}
		if len(list)+n > maxSimulated {
			return nil, true, fmt.Errorf("simulated GPUs %q: a host has at most %d", rest, maxSimulated)
		}
		for range n {
			list = append(list, m)
		}
	}
	return list, true, nil
}

// maxSimulated is what an inventory may hold.
const maxSimulated = 64
