package protocol

import "fmt"

// TelemetryBatch is a run of samples of one host, columnar: one array per
// quantity, each as long as At. Acknowledged by sequence; the sample at
// position i has sequence First+i.
type TelemetryBatch struct {
	Version int            `cbor:"1,keyasint"`
	First   uint64         `cbor:"2,keyasint"` // sequence of the first sample, from 1, over restarts too
	At      []int64        `cbor:"3,keyasint"` // Unix milliseconds
	Host    []Series       `cbor:"4,keyasint,omitempty"`
	GPUs    []GPUTelemetry `cbor:"5,keyasint,omitempty"`
}

// GPUTelemetry is the series of one GPU.
type GPUTelemetry struct {
	UUID   string   `cbor:"1,keyasint"`
	Series []Series `cbor:"2,keyasint"`
}

// Series is one quantity over the samples of its batch; NaN: not available.
type Series struct {
	Metric Metric    `cbor:"1,keyasint"`
	Values []float32 `cbor:"2,keyasint"`
}

// Metric numbers a quantity; its unit is part of its meaning.
type Metric uint16

// Metrics of a host (below 100) and of a GPU.
const (
	MetricCPUPercent  Metric = 1
	MetricLoad1       Metric = 2
	MetricMemoryUsed  Metric = 3 // MiB
	MetricDiskUsed    Metric = 4 // MiB
	MetricNetReceived Metric = 5 // KiB/s
	MetricNetSent     Metric = 6 // KiB/s

	MetricGPUUtilisation Metric = 100 // percent
	MetricGPUMemoryUsed  Metric = 101 // MiB
	MetricGPUTemperature Metric = 102 // °C
	MetricGPUPower       Metric = 103 // watts
	MetricGPUFan         Metric = 104 // percent
	MetricGPUClockSM     Metric = 105 // MHz
	MetricGPUClockMemory Metric = 106 // MHz
)

const maxSamples = 3600

// Validate checks that all series are as long as the batch and within limits.
func (b *TelemetryBatch) Validate() error {
	if err := checkVersion("telemetry batch", b.Version); err != nil {
		return err
	}
	if b.First == 0 || b.First > maxCount-maxSamples || len(b.At) == 0 || len(b.At) > maxSamples || len(b.GPUs) > maxGPUs {
		return fmt.Errorf("telemetry batch is empty or over its limits")
	}
	if err := checkSeries(b.Host, len(b.At)); err != nil {
		return err
	}
	for _, g := range b.GPUs {
		if g.UUID == "" || len(g.UUID) > MaxLabel {
			return fmt.Errorf("telemetry batch has a GPU without a valid UUID")
		}
		if err := checkSeries(g.Series, len(b.At)); err != nil {
			return fmt.Errorf("GPU %s: %w", g.UUID, err)
		}
	}
	return nil
}

func checkSeries(all []Series, n int) error {
	if len(all) > 256 {
		return fmt.Errorf("%d series are over the limit of 256", len(all))
	}
	for _, s := range all {
		if len(s.Values) != n {
			return fmt.Errorf("series %d has %d values for %d samples", s.Metric, len(s.Values), n)
		}
	}
	return nil
}
