using System;
using System.Collections.Generic;
using System.Globalization;
using System.Linq;

namespace TileCache.Client
{
    // Runs what TileReplica is made of for test_replica_state.py and test_replica_areas.py. Each line of input is a
    // command: its name and its words, each described at its method. A block is ZOOM/X/Y, a tile is as in
    // tests/replica/cases.json, lists are parted by semicolons, and - stands for nothing.
    internal static class ReplicaDriver
    {
        private static readonly List<ReplicaRequest> Requests = new List<ReplicaRequest>();
        private static readonly List<BlockKey> Changed = new List<BlockKey>();

        private static ReplicaState<TestTile> state;
        private static FollowedCircle circle;

        private static void Main()
        {
            var commands = new Dictionary<string, Action<string[]>>
            {
                { "new", _ => state = new ReplicaState<TestTile>(new TestTraits()) },
                { "follow", words => Requests.Add(state.Follow(new HashSet<BlockKey>(Items(words[1]).Select(KeyOf)))) },
                { "reconnect", words => Requests.Add(state.Reconnect(Number(words[1]))) },
                { "disconnect", _ => state.Disconnect() },
                { "block", Apply },
                { "synced", words => state.NoteSynced(long.Parse(words[1])) },
                { "heartbeat", NoteHeartbeat },
                { "observe", _ => Observe() },
                { "read", Read },
                { "circle", words => Print(Mercator.CellsInCircle(
                    int.Parse(words[1]), Number(words[2]), Number(words[3]), Number(words[4]))) },
                { "box", words => Print(Mercator.CellsInBox(
                    int.Parse(words[1]), Number(words[2]), Number(words[3]), Number(words[4]), Number(words[5]))) },
                { "blocks", Blocks },
                { "around", FollowCircle },
                { "suffices", words => Console.WriteLine(circle.Suffices(
                    Number(words[1]), Number(words[2]), Number(words[3]), Zooms(words[4])) ? "true" : "false") },
            };
            for (string line = Console.ReadLine(); line != null; line = Console.ReadLine())
            {
                string[] words = line.Split(' ');
                commands[words[0]](words);
            }
        }

        // NUMBER BLOCK VERSION BASE_VERSION IS_PARTIAL TILES REMOVED
        private static void Apply(string[] words)
        {
            var update = new ReplicaUpdate<TestTile>(
                KeyOf(words[2]),
                words[3],
                words[4] == "-" ? string.Empty : words[4],
                Items(words[6]).Select(text => new TestTile(text)).ToList(),
                Items(words[7]),
                words[5] == "true");
            state.Apply(long.Parse(words[1]), update, Changed, Requests);
        }

        // AGE_MS IS_DEGRADED ELAPSED_MS RECEIVED_AT
        private static void NoteHeartbeat(string[] words)
        {
            long? ageMs = words[1] == "-" ? (long?)null : long.Parse(words[1]);
            state.NoteHeartbeat(ageMs, words[2] == "true", long.Parse(words[3]), Number(words[4]));
        }

        // Prints, as JSON, what was asked for and what has changed since the last time, and what is held.
        private static void Observe()
        {
            double confirmedAt = state.ConfirmedAt;
            Console.WriteLine(Object(new[]
            {
                Member("requests", Array(Requests.Select(request => Object(new[]
                {
                    Member("number", Text(request.Number)),
                    Member("held", Object(request.Held.Select(
                        block => Member(TextOf(block.Key), Quoted(block.Value))))),
                })))),
                Member("changed", Array(
                    Changed.Select(TextOf).Distinct().OrderBy(text => text, StringComparer.Ordinal).Select(Quoted))),
                Member("held", Object(state.Blocks.Select(block => Member(TextOf(block.Key), Object(new[]
                {
                    Member("version", Quoted(block.Value.Version)),
                    Member("tiles", Array(block.Value.Tiles.Select(tile => Quoted(tile.Text)))),
                    Member("usable", Array(
                        block.Value.UsableTiles.SelectMany(tiles => tiles).Select(tile => Quoted(tile.Text)))),
                }))))),
                Member("by_id", Object(state.Tiles.Select(tile => Member(tile.Key, Quoted(tile.Value.Text))))),
                Member("synced", state.Synced ? "true" : "false"),
                Member("degraded", state.Degraded ? "true" : "false"),
                Member("confirmed_at_s", double.IsInfinity(confirmedAt) ? "null" : Text(confirmedAt)),
            }));
            Requests.Clear();
            Changed.Clear();
        }

        // ZOOM X_FROM X_TO Y_FROM Y_TO USABLE; prints whether all cells are held, and the tiles
        private static void Read(string[] words)
        {
            var cells = new CellRectangle(
                int.Parse(words[2]), int.Parse(words[3]), int.Parse(words[4]), int.Parse(words[5]));
            var found = new List<TestTile[]>();
            bool complete = state.Read(int.Parse(words[1]), new[] { cells }, words[6] == "true", found);
            Console.WriteLine((complete ? "true " : "false ") +
                string.Join(";", found.SelectMany(tiles => tiles).Select(tile => tile.Text)));
        }

        // LATITUDE LONGITUDE RADIUS ZOOMS NORTHWARD EASTWARD; prints latitude, longitude, radius
        private static void FollowCircle(string[] words)
        {
            try
            {
                circle = FollowedCircle.Around(
                    Number(words[1]), Number(words[2]), Number(words[3]), Zooms(words[4]), Number(words[5]), Number(words[6]));
            }
            catch (ArgumentException error)
            {
                Console.WriteLine("refused " + error.ParamName);
                return;
            }

            Console.WriteLine(Text(circle.Latitude) + " " + Text(circle.Longitude) + " " + Text(circle.RadiusMeters));
        }

        // MOST ZOOM LATITUDE LONGITUDE RADIUS; prints the blocks of a circle's cells, or "many"
        private static void Blocks(string[] words)
        {
            int zoom = int.Parse(words[2]);
            IEnumerable<CellRectangle> cells = Mercator.CellsInCircle(
                zoom, Number(words[3]), Number(words[4]), Number(words[5]));
            var blocks = new HashSet<BlockKey>();
            bool all = Mercator.AddBlocks(zoom, cells, blocks, int.Parse(words[1]));
            Console.WriteLine(all ? string.Join(";", blocks.Select(TextOf)) : "many");
        }

        private static void Print(IEnumerable<CellRectangle> cells)
        {
            Console.WriteLine(string.Join(";", cells.Select(part => string.Join(
                ",", new[] { part.XFrom, part.XTo, part.YFrom, part.YTo }))));
        }

        private static string[] Items(string word)
        {
            return word == "-" ? new string[0] : word.Split(';');
        }

        private static IEnumerable<int> Zooms(string word)
        {
            return Items(word).Select(int.Parse);
        }

        private static double Number(string word)
        {
            return double.Parse(word, CultureInfo.InvariantCulture);
        }

        private static BlockKey KeyOf(string word)
        {
            int[] parts = word.Split('/').Select(int.Parse).ToArray();
            return new BlockKey(parts[0], parts[1], parts[2]);
        }

        private static string TextOf(BlockKey key)
        {
            return key.Zoom + "/" + key.X + "/" + key.Y;
        }

        private static string Text(double number)
        {
            return number.ToString("R", CultureInfo.InvariantCulture);
        }

        private static string Quoted(string text)
        {
            return "\"" + text + "\"";
        }

        private static string Member(string name, string value)
        {
            return Quoted(name) + ":" + value;
        }

        private static string Object(IEnumerable<string> members)
        {
            return "{" + string.Join(",", members) + "}";
        }

        private static string Array(IEnumerable<string> items)
        {
            return "[" + string.Join(",", items) + "]";
        }

        private sealed class TestTile
        {
            public TestTile(string text)
            {
                string[] parts = text.TrimEnd('!').Split('#')[0].Split('@', ',', ':');
                Text = text;
                TileUuid = parts[0];
                X = int.Parse(parts[1]);
                Y = int.Parse(parts[2]);
                Rank = parts.Length > 3 ? int.Parse(parts[3]) : 0;
            }

            public string Text { get; }

            public string TileUuid { get; }

            public int X { get; }

            public int Y { get; }

            public int Rank { get; }
        }

        private sealed class TestTraits : ITileTraits<TestTile>
        {
            public string IdOf(TestTile tile)
            {
                return tile.TileUuid;
            }

            public int ColumnOf(TestTile tile)
            {
                return tile.X;
            }

            public int RowOf(TestTile tile)
            {
                return tile.Y;
            }

            public bool IsUsable(TestTile tile)
            {
                return !tile.Text.EndsWith("!");
            }

            public int Compare(TestTile first, TestTile second)
            {
                return first.Rank != second.Rank
                    ? first.Rank.CompareTo(second.Rank)
                    : string.CompareOrdinal(first.TileUuid, second.TileUuid);
            }
        }
    }
}
