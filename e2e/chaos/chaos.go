// Package chaos breaks a system by a plan and says what did not hold.
//
// It owns the plan, which is drawn from a seed and nothing else, the user-space
// line that bad networks are made of, the invariants and the report. It knows
// no hosts and no servers: faults, and what is seen of the system, are passed
// in by the test that has built one. Its invariant: the same seed, faults and
// numbers give the same plan, so what broke once is tried again by its seed.
//
// A run is rounds of a storm, in which faults strike, and a calm, in which
// nothing is broken and the system has to come to rest:
//
//	┌──────── storm ────────┐┌──── calm ─────┐
//	  strike ─ Do … Undo       until quiet, at most Calm: what was wished is there
//	     strike ─ Do … Undo    checked at rest, then the next storm
//	invariants that hold always are checked all the time
package chaos

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// Fault is one way to break something.
type Fault struct {
	Name string
	On   string // what kind of part it hits: a key of Parts
	From int    // number of the first part that it may hit
	// Least and Most bound how long it lasts; both zero: it is over at once.
	Least, Most time.Duration
	// Weight is how often it is drawn among the others; zero: 1.
	Weight int
	// Do breaks a part, Undo mends it. Undo is nil where it comes back by itself.
	Do, Undo func(ctx context.Context, hit Hit) error
}

// Hit is what a fault gets.
type Hit struct {
	Part int    // which one of its kind
	Dice uint64 // drawn: for whatever a fault chooses
}

// Strike is one fault of a plan.
type Strike struct {
	Round int
	At    time.Duration // from the beginning of the round's storm
	Lasts time.Duration
	Fault int // index in the table
	Hit   Hit
}

// Shape is what a plan is drawn for.
type Shape struct {
	Rounds int
	Storm  time.Duration
	Pause  time.Duration  // between two strikes, about
	Parts  map[string]int // how many there are of each kind
}

// Plan draws strikes, in the order in which they begin. Faults overlap, but
// never on one part, and all are over when their storm is. Each fault comes
// once before one comes again, as far as the time allows.
func Plan(seed uint64, faults []Fault, shape Shape) []Strike {
	rnd := rand.New(rand.NewPCG(seed, 0))
	deck := &deck{faults: faults, rnd: rnd}
	var plan []Strike
	for round := range shape.Rounds {
		free := map[string]time.Duration{} // when a part is whole again
		for at := pause(rnd, shape.Pause); at < shape.Storm; at += pause(rnd, shape.Pause) {
			i := deck.next()
			f := faults[i]
			s := Strike{Round: round, At: at, Fault: i, Lasts: f.Least, Hit: Hit{Dice: rnd.Uint64()}}
			if f.Most > f.Least {
				s.Lasts += rand64(rnd, f.Most-f.Least)
			}
			n := shape.Parts[f.On] - f.From
			if n <= 0 {
				continue // there is none of it in this world
			}
			s.Hit.Part = f.From + rnd.IntN(n)
			part := fmt.Sprint(f.On, s.Hit.Part)
			if at < free[part] || at+s.Lasts > shape.Storm {
				deck.back(i)
				continue
			}
			free[part] = at + s.Lasts + time.Second
			plan = append(plan, s)
		}
	}
	return plan
}

func pause(rnd *rand.Rand, about time.Duration) time.Duration {
	return about/2 + rand64(rnd, about)
}

func rand64(rnd *rand.Rand, below time.Duration) time.Duration {
	return time.Duration(rnd.Int64N(int64(below))).Truncate(time.Millisecond)
}

// deck deals the faults like cards, so that rare ones come too in a short run.
type deck struct {
	faults []Fault
	rnd    *rand.Rand
	cards  []int
}

func (d *deck) next() int {
	if len(d.cards) == 0 {
		for i, f := range d.faults {
			d.cards = append(d.cards, slices.Repeat([]int{i}, cmp.Or(f.Weight, 1))...)
		}
		d.rnd.Shuffle(len(d.cards), func(i, j int) { d.cards[i], d.cards[j] = d.cards[j], d.cards[i] })
	}
	card := d.cards[0]
	d.cards = d.cards[1:]
	return card
}

// back puts a card that could not be played to the end of the deck.
func (d *deck) back(card int) { d.cards = append(d.cards, card) }
