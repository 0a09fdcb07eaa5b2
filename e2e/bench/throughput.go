package main

import (
	"errors"
	"fmt"
	"time"
)

// throughput compares the tunnel with the relay at no distance, and the CPU
// time of both ends.
func throughput(b *bench) error { return b.throughputAt(0) }

// distance compares them over long lines.
func distance(b *bench) error {
	return errors.Join(b.throughputAt(50*time.Millisecond), b.throughputAt(200*time.Millisecond))
}

func (b *bench) throughputAt(roundTrip time.Duration) error {
	l, tunnel, relay, err := b.facing("relay", roundTrip)
	if err != nil {
		return err
	}
	defer l.close()
	defer tunnel.close()
	defer relay.close()
	for _, streams := range []int{1, 8} {
		for _, kind := range []byte{asSource, asSink} {
			p, err := b.flows(l, [2]*way{tunnel, relay}, kind, streams, roundTrip)
			if err != nil {
				return err
			}
			name := fmt.Sprintf("%s, %s, %d ms round trip", direction(kind), ofStreams(streams), roundTrip.Milliseconds())
			b.add("tunnel "+name, "MB/s", atLeast(0.95), 0, p)
			if roundTrip == 0 {
				b.add("CPU of both ends "+name, "s/GB", atMost(1.15), 1, p)
			}
		}
	}
	return nil
}

// remotedialer compares the tunnel with rancher's over the same hops.
func remotedialer(b *bench) error {
	l, tunnel, theirs, err := b.facing("remotedialer", 0)
	if err != nil {
		return err
	}
	defer l.close()
	defer tunnel.close()
	defer theirs.close()
	for _, streams := range []int{1, 8} {
		for _, kind := range []byte{asSource, asSink} {
			p, err := b.flows(l, [2]*way{tunnel, theirs}, kind, streams, 0)
			if err != nil {
				return err
			}
			b.add(fmt.Sprintf("tunnel %s, %s, against remotedialer", direction(kind), ofStreams(streams)), "MB/s", atLeast(3), 0, p)
		}
	}
	return nil
}

// A repetition is short, so that what disturbs one way disturbs the other too.
const (
	warmUp = 100 * time.Millisecond
	window = 300 * time.Millisecond
)

// flows measures MB/s and seconds of CPU per GB of two ways in turns.
func (b *bench) flows(l *load, ways [2]*way, kind byte, streams int, roundTrip time.Duration) (pairs, error) {
	through := func(w *way) func() (measured, error) {
		return func() (measured, error) { return flow(l, w, kind, streams, roundTrip) }
	}
	n := b.often()
	if roundTrip > 0 {
		n = b.seldom()
	}
	return paired(n, through(ways[0]), through(ways[1]))
}

// flow measures one way once it runs at full speed.
func flow(l *load, w *way, kind byte, streams int, roundTrip time.Duration) (measured, error) {
	stop, err := l.bulk(w, kind, streams)
	if err != nil {
		return nil, err
	}
	defer func() {
		stop()
		time.Sleep(roundTrip) // what is on the line is not the next one's
	}()
	bytes := &l.got
	if kind == asSink {
		bytes = &l.sunk
	}
	time.Sleep(warmUp + 3*roundTrip)
	before, err := w.cpu()
	if err != nil {
		return nil, err
	}
	from, start := bytes.Load(), time.Now()
	time.Sleep(window)
	moved, took := float64(bytes.Load()-from), time.Since(start).Seconds()
	after, err := w.cpu()
	if err != nil {
		return nil, err
	}
	if moved == 0 {
		return nil, fmt.Errorf("nothing came in %v", window)
	}
	return measured{moved / 1e6 / took, (after - before) / (moved / 1e9)}, nil
}

func direction(kind byte) string {
	if kind == asSource {
		return "down"
	}
	return "up"
}

func ofStreams(n int) string {
	if n == 1 {
		return "1 stream"
	}
	return fmt.Sprintf("%d streams", n)
}
