package main

import (
	"errors"
	"fmt"
	"net"
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

// latency compares small round trips of tunnel and relay, alone and beside a
// bulk stream, and how long a new stream takes.
func latency(b *bench) error {
	l, tunnel, relay, err := b.facing("relay", 0)
	if err != nil {
		return err
	}
	defer l.close()
	defer tunnel.close()
	defer relay.close()
	alone := func(w *way) func() (measured, error) {
		return func() (measured, error) { return b.smallTrips(w, 0.5) }
	}
	p, err := paired(b.often(), alone(tunnel), alone(relay))
	if err != nil {
		return err
	}
	b.add("64-byte round trip, idle, p50", "µs", atMost(1.15), 0, p)
	for _, kind := range []byte{asSource, asSink} {
		beside := func(w *way) func() (measured, error) {
			return func() (measured, error) {
				stop, err := l.bulk(w, kind, 1)
				if err != nil {
					return nil, err
				}
				defer stop()
				time.Sleep(warmUp)
				return b.smallTrips(w, 0.99)
			}
		}
		p, err := paired(b.often(), beside(tunnel), beside(relay))
		if err != nil {
			return err
		}
		b.add(fmt.Sprintf("64-byte round trip beside a stream %s, p99", direction(kind)), "µs", atMost(1.2), 0, p)
	}
	return opening(b)
}

func (b *bench) smallTrips(w *way, q float64) (measured, error) {
	c, err := w.ask(asEcho)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	n := 2000
	if b.quick {
		n = 600
	}
	took, err := roundTrips(c, n)
	if err != nil {
		return nil, err
	}
	return measured{quantile(q, took) * 1e6}, nil
}

// opening compares the time until a new stream brings the target's first byte
// with one round trip on an open one. The host is in use: one stream stays
// open, and others come and go, five a second.
func opening(b *bench) error {
	const roundTrip = 50 * time.Millisecond
	l, tunnel, relay, err := b.facing("relay", roundTrip)
	if err != nil {
		return err
	}
	defer l.close()
	defer relay.close()
	defer tunnel.close()
	inUse, err := tunnel.ask(asEcho)
	if err != nil {
		return err
	}
	defer inUse.Close()
	there, err := relay.ask(asEcho)
	if err != nil {
		return err
	}
	defer there.Close()
	p, err := paired(b.seldom(),
		func() (measured, error) { return openings(tunnel) },
		func() (measured, error) { return oneTrip(there) },
	)
	if err != nil {
		return err
	}
	b.add("opening a stream, 50 ms round trip, against one round trip", "ms", atMost(1.2), 0, p)
	return nil
}

func openings(w *way) (measured, error) {
	var took []float64
	for range 8 {
		start := time.Now()
		c, err := w.open()
		if err != nil {
			return nil, err
		}
		took = append(took, time.Since(start).Seconds()*1e3)
		c.Close()
		time.Sleep(200 * time.Millisecond)
	}
	return measured{median(took)}, nil
}

func oneTrip(c net.Conn) (measured, error) {
	took, err := roundTrips(c, 8)
	if err != nil {
		return nil, err
	}
	return measured{median(took) * 1e3}, nil
}
